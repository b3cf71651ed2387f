//! Why a transcode cannot start or go on.

use crate::libav::Failure;

/// Why a transcode cannot start or go on. Damage in the source is not an error: see
/// [`crate::Event::Damaged`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The job makes no sense; nothing was started.
    #[error("transcode job: {problem}")]
    Job {
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The linked FFmpeg was built without an encoder.
    #[error("the linked libavcodec has no encoder {encoder}")]
    NoEncoder {
        /// Its name.
        encoder: &'static str,
    },
    /// An encoder refuses what it is told, or finds no device to work with.
    #[error("encoder {encoder} cannot be opened: {failure}{said}")]
    Unopened {
        /// Its name.
        encoder: &'static str,
        /// What libav returned.
        failure: Failure,
        /// What it said.
        said: String,
    },
    /// The linked FFmpeg cannot turn the source's audio into AAC.
    #[error("the linked libavcodec lacks the encoder aac, or the decoder of what is to become AAC")]
    NoAudioEncoder,
    /// An encoder does not know an option, of the configuration or one that live encoding depends on.
    #[error("the linked libavcodec's {encoder} does not know the option {name:?}")]
    UnknownOption {
        /// Its name.
        encoder: &'static str,
        /// The option that was left over.
        name: String,
    },
    /// A libav call failed in a way that the job cannot survive.
    #[error("{0}")]
    Libav(Failure),
    /// The encoder broke the rule that every picture comes out once, in order, as the kind that was asked
    /// for.
    #[error("rung {rung}: encoder {problem} (pts {pts})")]
    Encoder {
        /// The rung's name.
        rung: String,
        /// What happened.
        problem: &'static str,
        /// Presentation time of the picture at fault, in ticks of 1/90000 s.
        pts: i64,
    },
    /// The system refused a thread.
    #[error("cannot start thread {thread}: {reason}")]
    Spawn {
        /// The thread's name.
        thread: String,
        /// What the system said.
        reason: String,
    },
    /// A thread broke one of our own invariants.
    #[error("thread {thread} panicked: {message}")]
    Panicked {
        /// The thread's name.
        thread: String,
        /// The panic's message.
        message: String,
    },
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Libav(failure)
    }
}

/// The job has ended; [`crate::Output::next`] tells why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transcode job has ended")]
pub struct Closed;

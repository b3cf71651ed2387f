//! Writes down what an encoder sends, to be replayed by `ingest/tests/captures.rs`:
//!
//! ```text
//! cargo run -p ingest --example capture -- 127.0.0.1:1935 ingest/testdata/NAME.bin
//! ```
//!
//! Takes one connection that publishes, with any token: use one that opens nothing, since it is written down as well.

use std::io::{Read, Write};
use std::net::TcpListener;

use ingest::rtmp::{Event, Session};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: capture ADDRESS FILE";
    let mut arguments = std::env::args().skip(1);
    let (address, file) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let (mut socket, peer) = TcpListener::bind(address)?.accept()?;
    println!("{peer}");
    let (mut session, mut captured) = (Session::new(8 << 20), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    'connection: loop {
        let n = socket.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        captured.extend_from_slice(&buffer[..n]);
        session.input().extend_from_slice(&buffer[..n]);
        while let Some(event) = session.poll() {
            match event {
                Event::Publish(key) => {
                    println!("publishes {key:?}");
                    session.accept()?;
                }
                Event::Tag(_) => {}
                Event::Ended => {
                    println!("ended");
                    break 'connection;
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        let answer = session.output().split();
        socket.write_all(&answer)?;
    }
    let answer = session.output().split();
    socket.write_all(&answer)?;
    std::fs::write(&file, &captured)?;
    println!("{file}: {} bytes", captured.len());
    Ok(())
}

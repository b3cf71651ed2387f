// A broadcast told by arbitrary bytes: connect and publish as an encoder does it, then what the bytes say, in chunks that
// are as they should be unless the bytes say otherwise. Random bytes alone never get past a chunk header or two.

/// Reads choices from the fuzzer's bytes; zeros when they are at an end.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u32 {
        let mut bytes = [0; 4];
        let taken = self.take(4);
        bytes[..taken.len()].copy_from_slice(taken);
        u32::from_be_bytes(bytes)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Writes chunks.
struct Script {
    bytes: Vec<u8>,
    chunk_bytes: usize,
    /// Messages that have begun, with what is to come of each.
    open: Vec<(u8, usize)>,
}

impl Script {
    fn header(&mut self, csid: u8, kind: u8, time: u32, len: usize) {
        self.bytes.push(csid);
        self.bytes.extend(&time.min(0xFF_FFFF).to_be_bytes()[1..]);
        self.bytes.extend(&(len as u32).to_be_bytes()[1..]);
        self.bytes.extend([kind, 1, 0, 0, 0]);
        if time >= 0xFF_FFFF {
            self.bytes.extend(time.to_be_bytes());
        }
    }

    fn message(&mut self, csid: u8, kind: u8, time: u32, body: &[u8]) {
        self.header(csid, kind, time, body.len());
        for (index, chunk) in body.chunks(self.chunk_bytes).enumerate() {
            if index > 0 {
                self.bytes.push(0xC0 | csid);
                if time >= 0xFF_FFFF {
                    self.bytes.extend(time.to_be_bytes());
                }
            }
            self.bytes.extend(chunk);
        }
    }

    fn chunk_size(&mut self, size: u32) {
        self.message(2, 1, 0, &size.to_be_bytes());
        // What the reader makes of it.
        self.chunk_bytes = size.clamp(1, 0xFF_FFFF) as usize;
    }

    /// A command under type 20, or under 17 behind its zero.
    fn command(&mut self, amf3: bool, amf0: &[u8]) {
        if amf3 {
            self.message(3, 17, 0, &[&[0], amf0].concat());
        } else {
            self.message(3, 20, 0, amf0);
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    [&[2, 0, text.len() as u8][..], text.as_bytes()].concat()
}

/// The whole connection. The first byte says how it begins; each operation after it, what comes.
pub(crate) fn script(data: &[u8]) -> Vec<u8> {
    let mut choices = Choices(data);
    let mut script = Script { bytes: vec![3], chunk_bytes: 128, open: Vec::new() };
    script.bytes.extend([0; 2 * 1536]);
    let first = choices.byte();
    let amf3 = first & 1 != 0;
    let number = [0, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0];
    let app = [&[3, 0, 3][..], b"app", &string("live/demo?token=x"), &[0, 0, 9]].concat();
    script.command(amf3, &[&string("connect")[..], &number, &app].concat());
    script.command(amf3, &[&string("createStream")[..], &number, &[5]].concat());
    if first & 2 == 0 {
        script.command(amf3, &[&string("publish")[..], &number, &[5], &string("")].concat());
    }
    while !choices.0.is_empty() {
        operation(&mut script, &mut choices);
    }
    script.bytes
}

fn operation(script: &mut Script, choices: &mut Choices<'_>) {
    const KINDS: [u8; 8] = [8, 9, 9, 18, 15, 20, 22, 4];
    let what = choices.byte();
    let csid = 4 + (what >> 3);
    // One in eight does what no encoder does.
    let hostile = csid >= 32;
    let is_open = script.open.iter().any(|(open, _)| *open == csid);
    match what & 7 {
        // A message as it should be.
        0 | 1 if hostile || !is_open => {
            let (kind, time, len) = (choices.byte(), choices.number(), usize::from(choices.byte()) * 8);
            let body = choices.take(len);
            script.message(csid, KINDS[usize::from(kind & 7)], time, body);
        }
        // One that is announced and comes in pieces, between others.
        2 if hostile => {
            let (kind, len, come) = (choices.byte(), choices.number() & 0xFF_FFFF, choices.byte());
            script.header(csid, KINDS[usize::from(kind & 7)], 0, len as usize);
            script.bytes.extend(choices.take(usize::from(come)));
        }
        2 if !is_open => {
            let (kind, len) = (choices.byte(), choices.number() as usize % 5000);
            script.header(csid, KINDS[usize::from(kind & 7)], 0, len);
            script.open.push((csid, len));
            script.go_on(script.open.len() - 1, choices);
        }
        3 if hostile => {
            let n = usize::from(choices.byte()) * 4;
            script.bytes.push(0xC0 | csid);
            script.bytes.extend(choices.take(n));
        }
        0..=3 if !script.open.is_empty() => {
            let index = usize::from(csid) % script.open.len();
            script.bytes.push(0xC0 | script.open[index].0);
            script.go_on(index, choices);
        }
        4 => {
            let size = choices.number();
            script.chunk_size(if hostile { size } else { 1 + size % 4096 });
        }
        5 => {
            script.message(2, 2, 0, &u32::from(csid).to_be_bytes());
            script.open.retain(|(open, _)| *open != csid);
        }
        // Several tags in one.
        6 if !is_open => {
            let mut body = Vec::new();
            for _ in 0..csid & 3 {
                let (kind, time, len) = (choices.byte(), choices.number(), choices.byte());
                let tag = choices.take(usize::from(len));
                body.push(KINDS[usize::from(kind & 7)]);
                body.extend(&(tag.len() as u32).to_be_bytes()[1..]);
                let [high, low @ ..] = time.to_be_bytes();
                body.extend(low);
                body.extend([high, 0, 0, 0]);
                body.extend(tag);
                body.extend((tag.len() as u32 + 11).to_be_bytes());
            }
            script.message(csid, 22, choices.number(), &body);
        }
        // Anything.
        7 if hostile => {
            let n = usize::from(choices.byte());
            script.bytes.extend(choices.take(n));
        }
        _ => {}
    }
}

impl Script {
    /// The next chunk of an open message, as long as it must be; what the choices do not have are zeros.
    fn go_on(&mut self, index: usize, choices: &mut Choices<'_>) {
        let left = &mut self.open[index].1;
        let n = self.chunk_bytes.min(*left);
        *left -= n;
        let body = choices.take(n);
        self.bytes.extend(body);
        self.bytes.extend(std::iter::repeat_n(0, n - body.len()));
        if *left == 0 {
            self.open.swap_remove(index);
        }
    }
}

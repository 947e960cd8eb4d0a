//! Server-sent events from bytes, however the network cut them.
//!
//! Takes every legal framing: LF, CR LF, CR, a byte order mark, comments, fields without a space, data over
//! several lines. Bytes that are not UTF-8 become U+FFFD. Nothing is read ahead of the caller.

/// One event of the stream, or a sign of life.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Event { name: String, data: String },
    Comment,
}

#[derive(Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// Everything before is taken.
    start: usize,
    /// No line ends between `start` and here.
    scanned: usize,
    /// A line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    past_first_line: bool,
    name: String,
    data: String,
    has_data: bool,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// How much of an unfinished event is held.
    pub(super) fn held(&self) -> usize {
        self.buffer.len() - self.start + self.data.len()
    }

    /// The next whole event of what was pushed.
    pub(super) fn next(&mut self) -> Option<Frame> {
        while let Some((from, to)) = self.next_line() {
            let line = String::from_utf8_lossy(&self.buffer[from..to]).into_owned();
            if let Some(frame) = self.take_line(&line) {
                return Some(frame);
            }
        }
        None
    }

    /// What the stream's end leaves behind: an event whose closing blank line is missing.
    pub(super) fn finish(&mut self) -> Option<Frame> {
        let rest = String::from_utf8_lossy(&self.buffer[self.start..]).into_owned();
        self.start = self.buffer.len();
        self.scanned = self.start;
        if !rest.is_empty() {
            self.take_line(&rest);
        }
        self.dispatch()
    }

    fn next_line(&mut self) -> Option<(usize, usize)> {
        if self.after_cr && self.start < self.buffer.len() {
            self.after_cr = false;
            if self.buffer[self.start] == b'\n' {
                self.start += 1;
                self.scanned = self.scanned.max(self.start);
            }
        }
        let Some(found) = self.buffer[self.scanned..].iter().position(|b| matches!(b, b'\n' | b'\r')) else {
            self.scanned = self.buffer.len();
            return None;
        };
        let (from, to) = (self.start, self.scanned + found);
        self.after_cr = self.buffer[to] == b'\r';
        self.start = to + 1;
        self.scanned = self.start;
        Some((from, to))
    }

    fn take_line(&mut self, line: &str) -> Option<Frame> {
        let line = if self.past_first_line { line } else { line.strip_prefix('\u{feff}').unwrap_or(line) };
        self.past_first_line = true;
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(Frame::Comment),
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Frame> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data).then_some(Frame::Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = vec![];
        for piece in pieces {
            decoder.push(piece);
            frames.extend(std::iter::from_fn(|| decoder.next()));
        }
        frames.extend(decoder.finish());
        frames
    }

    fn data(frames: &[Frame]) -> Vec<&str> {
        frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::Event { data, .. } => Some(data.as_str()),
                Frame::Comment => None,
            })
            .collect()
    }

    #[test]
    fn every_legal_framing_cut_anywhere_gives_the_same_events() {
        let plain = "data: {\"a\":1}\n\ndata: two\ndata: lines\n\ndata: ü\n\n";
        let odd = "\u{feff}: hello\r\nid: 7\r\ndata:{\"a\":1}\r\n\r\n:\revent: x\rdata: two\rdata:lines\r\rretry: 9\ndata: ü\n\n";
        let expected = ["{\"a\":1}", "two\nlines", "ü"];
        for text in [plain, odd] {
            let bytes = text.as_bytes();
            for cut in 0..=bytes.len() {
                assert_eq!(data(&decode(&[&bytes[..cut], &bytes[cut..]])), expected, "cut at {cut}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(data(&decode(&single)), expected);
        }
    }

    #[test]
    fn an_event_without_its_blank_line_is_found_at_the_end() {
        assert_eq!(data(&decode(&[b"data: a\n\ndata: [DO", b"NE]"])), ["a", "[DONE]"]);
        assert!(decode(&[b"event: x\n\n", b"\n\n"]).is_empty());
    }

    #[test]
    fn bytes_that_are_not_text_are_replaced() {
        assert_eq!(data(&decode(&[b"data: a\xff\xfeb\n\n"])), ["a\u{fffd}\u{fffd}b"]);
    }

    #[test]
    fn the_name_belongs_to_one_event() {
        let frames = decode(&[b"event: error\ndata: a\n\ndata: b\n\n"]);
        assert_eq!(frames[0], Frame::Event { name: "error".into(), data: "a".into() });
        assert_eq!(frames[1], Frame::Event { name: String::new(), data: "b".into() });
    }
}

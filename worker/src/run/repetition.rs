//! Notices that a model goes round in circles in what it writes.
//!
//! A stretch counts only while it goes on at the end of the text, and only if it still does some text later: a ruled
//! line, a column of padding or a table may be as long as a threshold, but then something else follows. The time it
//! takes grows with the text alone.

/// How much new text there is between two looks.
const LOOK_EVERY: usize = 2_000;
/// How much of the text a look takes in.
const WINDOW: usize = 3_000;
/// How much longer a stretch must go on before it counts.
const CONFIRM: usize = 200;
const LONGEST_BLOCK: usize = 150;
const EXCERPT: usize = 60;

/// From how many repetitions on something is a loop; 0 is never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    pub(super) lines: usize,
    pub(super) blocks: usize,
    pub(super) characters: usize,
}

/// What is written again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repetition {
    pub(super) excerpt: String,
    pub(super) times: usize,
    /// The characters of all repetitions together.
    length: usize,
}

/// Reads along with one step.
#[derive(Debug)]
pub(super) struct Detector {
    thresholds: Thresholds,
    text: Vec<char>,
    until_look: usize,
    is_suspicious: bool,
}

impl Detector {
    pub(super) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, text: vec![], until_look: LOOK_EVERY, is_suspicious: false }
    }

    /// Takes in the next piece of text; the answer does not depend on where pieces end.
    pub(super) fn push(&mut self, piece: &str) -> Option<Repetition> {
        for letter in piece.chars() {
            self.text.push(letter);
            self.until_look -= 1;
            if self.until_look == 0 {
                if self.text.len() > WINDOW {
                    self.text.drain(..self.text.len() - WINDOW);
                }
                if let Some(found) = self.look() {
                    return Some(found);
                }
            }
        }
        None
    }

    fn look(&mut self) -> Option<Repetition> {
        let found = repetition(&self.text, self.thresholds);
        let is_confirmed = self.is_suspicious && found.as_ref().is_some_and(|found| found.length >= CONFIRM);
        if is_confirmed {
            return found;
        }
        self.is_suspicious = found.is_some() && !self.is_suspicious;
        self.until_look = if self.is_suspicious { CONFIRM } else { LOOK_EVERY };
        None
    }
}

/// What is repeated at the end of the text.
fn repetition(text: &[char], thresholds: Thresholds) -> Option<Repetition> {
    repeated_block(text, thresholds).or_else(|| repeated_line(text, thresholds.lines))
}

fn repeated_block(text: &[char], thresholds: Thresholds) -> Option<Repetition> {
    let reversed: Vec<char> = text.iter().rev().copied().collect();
    let prefixes = prefix_lengths(&reversed);
    (1..=LONGEST_BLOCK.min(text.len())).find_map(|block| {
        // As long as the text equals itself moved on by a block, it consists of that block.
        let length = block + prefixes.get(block).copied().unwrap_or(0);
        let letters = &reversed[..block];
        let threshold = match block {
            1 => thresholds.characters,
            _ if letters.iter().all(|letter| *letter == letters[0]) => 0,
            _ => thresholds.blocks,
        };
        let times = length / block;
        (threshold > 0 && times >= threshold).then(|| Repetition {
            excerpt: excerpt_of(letters.iter().rev().copied().collect()),
            times,
            length,
        })
    })
}

/// The block from the beginning of a line or a word on: where it was met is chance.
fn excerpt_of(mut block: Vec<char>) -> String {
    let place = |wanted: char| block.iter().position(|letter| *letter == wanted);
    if let Some(end) = place('\n').or_else(|| place(' ')) {
        block.rotate_left(end + 1);
    }
    let block: String = block.into_iter().take(EXCERPT).collect();
    if block.trim().is_empty() { block } else { block.trim().to_owned() }
}

/// For each place, how many characters from there on are those of the beginning (the Z function).
fn prefix_lengths(text: &[char]) -> Vec<usize> {
    let mut lengths = vec![0; text.len()];
    let (mut begin, mut end) = (0, 0);
    for place in 1..text.len() {
        let mut length = if place < end { lengths[place - begin].min(end - place) } else { 0 };
        while text.get(place + length).is_some_and(|letter| *letter == text[length]) {
            length += 1;
        }
        if place + length > end {
            (begin, end) = (place, place + length);
        }
        lengths[place] = length;
    }
    lengths
}

/// Lines may differ in their indentation and in the blank lines between them, which a block may not.
fn repeated_line(text: &[char], threshold: usize) -> Option<Repetition> {
    let text: String = text.iter().collect();
    let mut lines = text.rsplit('\n');
    let unfinished = lines.next()?.trim_start();
    let mut lines = lines.map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().filter(|line| line.chars().any(char::is_alphanumeric))?;
    if !line.starts_with(unfinished) {
        return None;
    }
    let times = 1 + lines.take_while(|other| *other == line).count();
    (threshold > 0 && times >= threshold).then(|| Repetition {
        excerpt: line.chars().take(EXCERPT).collect(),
        times,
        length: times * line.chars().count(),
    })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const USUAL: Thresholds = Thresholds { lines: 25, blocks: 20, characters: 60 };

    fn at_the_end(text: &str) -> Option<(String, usize)> {
        let letters: Vec<char> = text.chars().collect();
        repetition(&letters, USUAL).map(|found| (found.excerpt, found.times))
    }

    /// Whether the detector finds anything, whatever pieces the text comes in.
    fn is_noticed(text: &str, piece: usize) -> bool {
        let mut detector = Detector::new(USUAL);
        let letters: Vec<char> = text.chars().collect();
        letters.chunks(piece).any(|piece| detector.push(&piece.iter().collect::<String>()).is_some())
    }

    fn joined(count: usize, piece: impl Fn(usize) -> String) -> String {
        (0..count).map(piece).collect()
    }

    #[test]
    fn each_threshold_counts_from_its_very_number_on() {
        for (unit, threshold) in [("-", 60), ("ha ", 20), (&"x y".repeat(50) as &str, 1)] {
            let text = |times: usize| format!("Before. {}", unit.repeat(times));
            if threshold > 1 {
                assert_eq!(at_the_end(&text(threshold - 1)), None, "{unit}");
                assert_eq!(at_the_end(&text(threshold)).unwrap().1, threshold, "{unit}");
            }
        }
        let block: String = (0..150).map(|n| char::from_u32(0x4e00 + n).unwrap()).collect();
        assert_eq!(at_the_end(&"y. I tr".repeat(30)), Some(("I try.".to_owned(), 30)));
        assert_eq!(at_the_end(&block.repeat(19)), None);
        assert!(at_the_end(&block.repeat(20)).is_some());
        let too_long = format!("{block}!");
        assert_eq!(at_the_end(&too_long.repeat(25)), None, "151 characters are no block");
        let lines = |times| joined(times, |n| format!("{}I try again.\n\n", " ".repeat(n % 5)));
        assert_eq!(at_the_end(&lines(24)), None);
        assert_eq!(at_the_end(&lines(25)), Some(("I try again.".to_owned(), 25)));
    }

    #[test]
    fn zero_turns_a_threshold_off() {
        let off = Thresholds { lines: 0, blocks: 0, characters: 0 };
        for text in ["-".repeat(3_000), "ha ".repeat(1_000), "again and again\n".repeat(180)] {
            assert_eq!(repetition(&text.chars().collect::<Vec<_>>(), off), None);
        }
    }

    #[test]
    fn endless_repetition_is_noticed_in_whatever_pieces_it_comes() {
        let mut random = StdRng::seed_from_u64(7);
        for round in 0..200 {
            let length = random.random_range(1..=LONGEST_BLOCK);
            let block: String = (0..length).map(|_| random.random_range('a'..='z')).collect();
            let before = joined(random.random_range(0..3_000), |n| format!("{n} "));
            let text = before + &block.repeat(6_000 / length);
            for piece in [1, 7, 5_000] {
                assert!(is_noticed(&text, piece), "round {round}: {block}");
            }
        }
    }

    #[test]
    fn code_tables_lists_and_rules_are_left_alone() {
        let mut random = StdRng::seed_from_u64(11);
        let code = include_str!("repetition.rs").to_owned() + include_str!("attempt.rs");
        let switch = joined(300, |n| format!("    case {n}:\n        break;\n"));
        let json = joined(300, |n| format!("  {{\"id\": {n}, \"on\": true}},\n"));
        let table = joined(200, |n| format!("| {n} | {}x | yes |\n", " ".repeat(59)));
        let list = joined(300, |n| format!("- item {n}\n"));
        let rules = joined(200, |n| format!("{}\nsection {n}\n", "-".repeat(59)));
        for text in [code, switch, json, table, list, rules] {
            for _ in 0..200 {
                let from = random.random_range(0..1_000);
                assert!(!is_noticed(&text.chars().skip(from).collect::<String>(), 64), "{}", &text[..200]);
            }
        }
    }

    #[test]
    fn a_rule_that_is_longer_than_the_threshold_ends_and_is_left_alone() {
        let after = joined(1_000, |n| format!("{n};"));
        for shift in (0..1_000).step_by(3) {
            let text = joined(shift, |n| format!("{n},")) + &"-".repeat(120) + &after;
            assert!(!is_noticed(&text, 100), "{shift}");
        }
    }

    #[test]
    fn the_time_grows_with_the_text_alone() {
        // Nearly periodic text, for which comparing every period with every place would take long.
        let text = format!("{}b", "a".repeat(59)).repeat(5_000);
        let begin = std::time::Instant::now();
        let off = Thresholds { lines: 0, blocks: 0, characters: 60 };
        let mut detector = Detector::new(off);
        assert_eq!(detector.push(&text), None);
        assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    }
}

//! Which call a piece belongs to, when indices and ids are missing, repeated or changing.
//!
//! Our own indices are dense from 0 in order of appearance. A piece begins a new call when the provider says so
//! by a new index, or when it brings a name and another id while no call's arguments are half written.

use longhaul_shared::domain::text::clean_owned;

use super::chunk::CallChunk;
use crate::provider::CallDelta;

#[derive(Default)]
pub(super) struct Calls {
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    index: Option<u32>,
    id: String,
    named: bool,
    arguments: Progress,
}

impl Calls {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The piece under our own index.
    pub(super) fn take(&mut self, piece: CallChunk) -> CallDelta {
        let id = clean_owned(piece.id.0);
        let name = clean_owned(piece.function.name.0);
        let arguments = clean_owned(piece.function.arguments.0);
        let at = self.find(piece.index, &id, &name).unwrap_or_else(|| {
            self.slots.push(Slot { index: piece.index, ..Slot::default() });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        slot.arguments.follow(&arguments);
        let first_id = slot.id.is_empty() && !id.is_empty();
        if first_id {
            slot.id.clone_from(&id);
        }
        let first_name = !slot.named && !name.is_empty();
        slot.named |= first_name;
        CallDelta {
            index: at as u32,
            id: first_id.then_some(id),
            name: first_name.then_some(name),
            arguments,
        }
    }

    fn find(&self, index: Option<u32>, id: &str, name: &str) -> Option<usize> {
        let last = self.slots.len().checked_sub(1);
        let at = match index {
            // The latest of that index: one index for all calls is a known quirk.
            Some(_) => self.slots.iter().rposition(|slot| slot.index == index)?,
            None => match self.slots.iter().rposition(|slot| !id.is_empty() && slot.id == id) {
                Some(at) => return Some(at),
                None => last?,
            },
        };
        let slot = &self.slots[at];
        let other_id = !id.is_empty() && !slot.id.is_empty() && slot.id != id;
        let unnumbered = index.is_none() && id.is_empty() && slot.named;
        let begins = !name.is_empty() && (other_id || unnumbered) && !slot.arguments.is_half_written();
        (!begins).then_some(at)
    }
}

/// Follows JSON text only as far as to know whether it stands inside a value.
#[derive(Default)]
struct Progress {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Progress {
    fn follow(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
    }

    fn is_half_written(&self) -> bool {
        self.in_string || self.depth > 0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What the pieces add up to: (id, name, arguments) of each call.
    fn assemble(pieces: &[Value]) -> Vec<(String, String, String)> {
        let mut calls = Calls::default();
        let mut whole: Vec<(String, String, String)> = vec![];
        for piece in pieces {
            let delta = calls.take(serde_json::from_value(piece.clone()).unwrap());
            let at = delta.index as usize;
            assert!(at <= whole.len(), "indices are dense");
            if at == whole.len() {
                whole.push(Default::default());
            }
            whole[at].0 += &delta.id.unwrap_or_default();
            whole[at].1 += &delta.name.unwrap_or_default();
            whole[at].2 += &delta.arguments;
        }
        whole
    }

    fn piece(index: Option<u32>, id: &str, name: &str, arguments: &str) -> Value {
        json!({"index": index, "id": id, "function": {"name": name, "arguments": arguments}})
    }

    fn two(ids: [&str; 2]) -> Vec<(String, String, String)> {
        let call = |id: &str, name: &str, arguments: &str| (id.into(), name.into(), arguments.into());
        vec![call(ids[0], "f", "{\"a\":1}"), call(ids[1], "g", "{\"b\":\"}\"}")]
    }

    #[test]
    fn interleaved_calls_are_told_apart_by_index() {
        let pieces = [
            piece(Some(3), "x", "f", "{\"a\""),
            piece(Some(9), "y", "g", ""),
            piece(Some(3), "", "", ":1}"),
            piece(Some(9), "", "", "{\"b\":\"}\"}"),
        ];
        assert_eq!(assemble(&pieces), two(["x", "y"]));
    }

    #[test]
    fn one_index_for_all_calls_still_gives_several_calls() {
        let pieces = [piece(Some(0), "x", "f", "{\"a\":1}"), piece(Some(0), "y", "g", "{\"b\":\"}\"}")];
        assert_eq!(assemble(&pieces), two(["x", "y"]));
    }

    #[test]
    fn ids_without_indices_and_names_without_either_begin_calls() {
        let pieces = [
            piece(None, "x", "f", "{\"a\""),
            piece(None, "x", "f", ":1}"),
            piece(None, "y", "g", "{\"b\":\"}"),
            piece(None, "", "", "\"}"),
        ];
        assert_eq!(assemble(&pieces), two(["x", "y"]));
        let pieces = [piece(None, "", "f", "{\"a\":1}"), piece(None, "", "g", "{\"b\":\"}\"}")];
        assert_eq!(assemble(&pieces), two(["", ""]));
    }

    #[test]
    fn an_id_that_changes_with_every_piece_is_still_one_call() {
        let pieces = [
            piece(Some(0), "x1", "f", "{\"a\""),
            piece(Some(0), "x2", "f", ":"),
            piece(Some(0), "x3", "", "1}"),
            piece(Some(1), "y", "g", "{\"b\":\"}\"}"),
        ];
        assert_eq!(assemble(&pieces), two(["x1", "y"]));
    }
}

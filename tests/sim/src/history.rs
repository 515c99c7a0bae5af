//! What clients asked for and were answered, cell by cell.
//!
//! A block of 4 KiB is one register. Blocks that requests touch in parts are eight registers of 512 bytes: a partial write
//! is a read and a write of the block to the server, but to the client it is a write of just those bytes. Every write has
//! a value of its own, and what is written follows from value and place, so that any mix of two writes shows.

use crate::rng::mix;

/// Bytes of a cell.
pub const CELL: usize = 512;
/// Bytes of a block.
pub const BLOCK: usize = 4096;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Which of the volumes, by its place in the plan.
    pub volume: u8,
    /// Which block.
    pub block: u32,
    /// Which part of the block, or [`Cell::WHOLE`].
    pub part: u8,
}

impl Cell {
    /// All of the block.
    pub const WHOLE: u8 = 8;
}

/// True if requests touch parts of the block.
pub const fn is_split(block: u32) -> bool {
    block % 8 >= 6
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write, or zeroing.
    Write,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody knows yet, or ever.
    Pending,
    /// It was done.
    Done,
    /// It may take effect until then and no later: its client was fenced.
    Fenced,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Op {
    /// Whose.
    pub session: u32,
    /// What.
    pub kind: Kind,
    /// When it began, in the order of all that was noted.
    pub start: u64,
    /// When it was answered, or fenced.
    pub end: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// The values that were written, or read.
    pub cells: Vec<(Cell, u64)>,
}

/// All requests of a run.
#[derive(Debug, Default)]
pub struct History {
    /// The requests.
    pub ops: Vec<Op>,
    clock: u64,
    values: u64,
    /// Reads that were answered with "no good copy".
    pub medium_errors: u64,
    /// Requests that ended with another error.
    pub errors: u64,
    /// Requests that were answered.
    pub answered: u64,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A value that was never written.
    pub fn fresh_value(&mut self) -> u64 {
        self.values += 1;
        mix(self.values.wrapping_mul(STEP)) | 1
    }

    /// A request begins; for writes with what they write.
    pub fn begin(&mut self, session: u32, kind: Kind, cells: Vec<(Cell, u64)>) -> usize {
        let start = self.tick();
        self.ops.push(Op { session, kind, start, end: u64::MAX, outcome: Outcome::Pending, cells });
        self.ops.len() - 1
    }

    /// It was answered; for reads with what was read.
    pub fn done(&mut self, op: usize, read: Option<Vec<(Cell, u64)>>) {
        let end = self.tick();
        self.answered += 1;
        let op = &mut self.ops[op];
        (op.end, op.outcome) = (end, Outcome::Done);
        if let Some(cells) = read {
            op.cells = cells;
        }
    }

    /// I17: nothing of the session takes effect from now on.
    pub fn fence(&mut self, session: u32) {
        let end = self.tick();
        for op in self.ops.iter_mut().filter(|op| op.session == session && op.outcome == Outcome::Pending) {
            (op.end, op.outcome) = (end, Outcome::Fenced);
        }
    }

    /// How many requests are not answered and could be.
    pub fn pending(&self) -> usize {
        self.ops.iter().filter(|op| op.outcome == Outcome::Pending).count()
    }
}

fn salt(cell: Cell, part: u8) -> u64 {
    mix(u64::from(cell.volume) << 48 | u64::from(cell.block) << 8 | u64::from(part) | 1 << 60)
}

/// Writes the content of a cell.
pub fn fill(cell: Cell, part: u8, value: u64, out: &mut [u8]) {
    let salt = salt(cell, part);
    for (index, word) in out.chunks_exact_mut(8).enumerate() {
        let noise = salt.wrapping_add(STEP.wrapping_mul(index as u64));
        word.copy_from_slice(&(value ^ noise).to_le_bytes());
    }
}

/// The value that a cell holds; 0 for zeros. `None`: it holds no value that was ever written there whole.
pub fn value_of(cell: Cell, part: u8, bytes: &[u8]) -> Option<u64> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let salt = salt(cell, part);
    let word = |index: usize| u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("eight bytes"));
    let value = word(0) ^ salt;
    let holds = |index: usize| word(index) ^ salt.wrapping_add(STEP.wrapping_mul(index as u64)) == value;
    (1..bytes.len() / 8).all(holds).then_some(value)
}

/// The registers of a range, which touches blocks that are not split only as a whole; with the part and the place in the
/// range of each cell.
pub fn cells(volume: u8, offset: u64, length: usize) -> impl Iterator<Item = (Cell, u8, usize)> {
    let first = offset / CELL as u64;
    (0..length / CELL).map(move |index| {
        let at = first + index as u64;
        let (block, part) = ((at / 8) as u32, (at % 8) as u8);
        let name = if is_split(block) { part } else { Cell::WHOLE };
        (Cell { volume, block, part: name }, part, index * CELL)
    })
}

/// What a write of that value puts into a range.
pub fn content(volume: u8, offset: u64, length: usize, value: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (cell, part, at) in cells(volume, offset, length) {
        fill(cell, part, value, &mut bytes[at..at + CELL]);
    }
    bytes
}

/// The registers that a write of that value sets.
pub fn written(volume: u8, offset: u64, length: usize, value: u64) -> Vec<(Cell, u64)> {
    let mut list: Vec<(Cell, u64)> = cells(volume, offset, length).map(|(cell, _, _)| (cell, value)).collect();
    list.dedup();
    list
}

/// What a read saw, or what is wrong with it.
pub fn seen(volume: u8, offset: u64, bytes: &[u8]) -> Result<Vec<(Cell, u64)>, String> {
    let mut list: Vec<(Cell, u64)> = Vec::new();
    for (cell, part, at) in cells(volume, offset, bytes.len()) {
        let Some(value) = value_of(cell, part, &bytes[at..at + CELL]) else {
            let head: Vec<String> = bytes[at..at + 16].iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(format!("{cell:?} part {part} holds what was never written there: {}..", head.concat()));
        };
        match list.last() {
            Some((last, other)) if *last == cell && *other != value => {
                return Err(format!("{cell:?} is torn: {other:x} and {value:x}"));
            }
            Some((last, _)) if *last == cell => {}
            _ => list.push((cell, value)),
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_known_again_and_a_mix_is_not() {
        let mut history = History::default();
        let (left, right) = (history.fresh_value(), history.fresh_value());
        let mut bytes = content(1, 5 * 4096, 3 * BLOCK, left);
        assert_eq!(seen(1, 5 * 4096, &bytes), Ok(written(1, 5 * 4096, 3 * BLOCK, left)));
        assert!(seen(1, 6 * 4096, &bytes[..BLOCK]).is_err(), "it belongs elsewhere");
        let other = content(1, 5 * 4096, BLOCK, right);
        bytes[512..1024].copy_from_slice(&other[512..1024]);
        assert!(seen(1, 5 * 4096, &bytes).unwrap_err().contains("torn"));
        bytes[512 + 8] ^= 1;
        assert!(seen(1, 5 * 4096, &bytes).unwrap_err().contains("never written"));
        assert_eq!(seen(1, 0, &[0; BLOCK]).unwrap(), [(Cell { volume: 1, block: 0, part: 8 }, 0)]);
    }
}

//! What clients ask for: small hot ranges of a few chunks, so that requests meet.

use bytes::Bytes;
use sdc_client::io::IoRequest;

use crate::history::{BLOCK, CELL, Cell, History, content, written};
use crate::rng::Rng;

/// Blocks of a chunk.
const CHUNK_BLOCKS: u64 = 256;
/// Hot blocks at the start of each chunk.
const HOT_BLOCKS: u64 = 16;
/// Where large writes of a chunk begin.
const LARGE_FIRST: u64 = 32;
const LARGE_BLOCKS: u64 = 96;
/// Blocks of an allocation unit.
const UNIT_BLOCKS: u64 = 16;

/// A request, and the registers that it sets.
pub struct Drawn {
    /// For the session.
    pub request: IoRequest,
    /// What it writes; empty for others.
    pub writes: Vec<(Cell, u64)>,
    /// Bytes that a read covers, else 0.
    pub reads: usize,
    /// Where.
    pub offset: u64,
}

/// The mix of a seed.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Shares, of a hundred.
    pub writes: u64,
    /// Shares, of a hundred.
    pub zeros: u64,
    /// Writes that are large, of a hundred.
    pub large: u64,
    /// Hot blocks of each chunk.
    pub hot: u64,
}

/// Draws the next request to a volume of so many chunks. If there is a chunk in `focus`, all that changes
/// anything goes there, and most of the rest.
pub fn draw(rng: &mut Rng, history: &mut History, volume: u8, chunks: u64, focus: Option<u64>, mix: Mix) -> Drawn {
    let anywhere = rng.below(chunks);
    let roll = rng.below(100);
    let changes = roll < mix.writes + mix.zeros;
    let chunk = focus.filter(|_| changes || !rng.one_in(4)).unwrap_or(anywhere) * CHUNK_BLOCKS;
    let is_large = rng.below(100) < mix.large;
    if is_large && roll < mix.writes {
        // Half of them are whole units, as large writes mostly are: those take a way of their own in the store.
        let (count, first) = if rng.one_in(2) {
            let units = rng.between(2, 4);
            (units * UNIT_BLOCKS, rng.below(LARGE_BLOCKS / UNIT_BLOCKS + 1 - units) * UNIT_BLOCKS)
        } else {
            let count = rng.between(17, 64);
            (count, rng.below(LARGE_BLOCKS - count))
        };
        let first = chunk + LARGE_FIRST + first;
        return write(history, volume, first * BLOCK as u64, count as usize * BLOCK);
    }
    let hot = mix.hot.min(HOT_BLOCKS);
    let block = chunk + if is_large { LARGE_FIRST + rng.below(LARGE_BLOCKS - 4) } else { rng.below(hot) };
    let count = rng.between(1, 4).min(hot);
    let (offset, length) = (block * BLOCK as u64, count as usize * BLOCK);
    if roll < mix.writes {
        return match split_range(rng, chunk, hot) {
            Some((offset, length)) => write(history, volume, offset, length),
            None => write(history, volume, offset, length),
        };
    }
    if roll < mix.writes + mix.zeros {
        let request = IoRequest::Zero { offset, length: length as u64 };
        return Drawn { request, writes: written(volume, offset, length, 0), reads: 0, offset };
    }
    match roll {
        98 => Drawn { request: IoRequest::Flush, writes: Vec::new(), reads: 0, offset: 0 },
        99 => {
            Drawn { request: IoRequest::Status { offset, length: length as u64 }, writes: Vec::new(), reads: 0, offset }
        }
        _ => read(offset, length),
    }
}

/// A read.
pub fn read(offset: u64, length: usize) -> Drawn {
    let request = IoRequest::Read { offset, length: length as u64 };
    Drawn { request, writes: Vec::new(), reads: length, offset }
}

/// A write of a value that was never written before.
pub fn write(history: &mut History, volume: u8, offset: u64, length: usize) -> Drawn {
    let value = history.fresh_value();
    let data = Bytes::from(content(volume, offset, length, value));
    Drawn {
        request: IoRequest::Write { offset, data },
        writes: written(volume, offset, length, value),
        reads: 0,
        offset,
    }
}

/// Sometimes: a range within the blocks that are touched in parts.
fn split_range(rng: &mut Rng, chunk: u64, hot: u64) -> Option<(u64, usize)> {
    if hot < 8 || !rng.one_in(3) {
        return None;
    }
    // Blocks 6 and 7 of the chunk are split: sixteen cells.
    let first = rng.below(16);
    let count = rng.between(1, 16 - first);
    Some(((chunk + 6) * BLOCK as u64 + first * CELL as u64, count as usize * CELL))
}

/// Every range that the requests of [`draw`] touch: read at the end.
pub fn everything(chunks: u64) -> impl Iterator<Item = Drawn> {
    (0..chunks).flat_map(|chunk| {
        let first = chunk * CHUNK_BLOCKS * BLOCK as u64;
        let hot = read(first, (HOT_BLOCKS as usize + 4) * BLOCK);
        let large = read(first + LARGE_FIRST * BLOCK as u64, LARGE_BLOCKS as usize * BLOCK);
        [hot, large]
    })
}

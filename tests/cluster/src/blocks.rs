//! Blocks of a volume of which a writer knows what must be in them, whatever crashed meanwhile.
//!
//! Each block is written again and again with a number that grows. A write that was answered is durable; one that was not
//! may have taken effect or not. So a block must hold its last answered number, or the one that was under way.

use std::sync::atomic::Ordering;

use anyhow::{Context, bail};

use crate::nbd::{Address, Client};
use crate::worker::Worker;

const BLOCK_BYTES: usize = 4096;

/// What a block must hold.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    answered: u64,
    under_way: u64,
}

/// A writer in a thread of its own; ends with its connection.
pub struct Writer {
    worker: Worker<Vec<Known>>,
}

/// What the writer knew when its connection broke.
pub struct Expected {
    blocks: Vec<Known>,
}

/// A block is one value throughout: a torn one is recognised.
fn fill(block: &mut [u8; BLOCK_BYTES], index: usize, number: u64) {
    let word = (number << 24 | index as u64).to_le_bytes();
    block.as_chunks_mut::<8>().0.iter_mut().for_each(|place| *place = word);
}

impl Writer {
    /// Writes to `count` blocks, spread over the whole volume.
    pub fn start(address: &Address, count: usize) -> anyhow::Result<Self> {
        let mut client = Client::connect(address)?;
        let worker = Worker::start(move |stop| {
            let mut blocks = vec![Known::default(); count];
            let mut block = [0; BLOCK_BYTES];
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                for index in 0..count {
                    fill(&mut block, index, round);
                    blocks[index].under_way = round;
                    if client.write(offset(client.size_bytes(), count, index), &block).is_err() {
                        return blocks;
                    }
                    blocks[index].answered = round;
                }
            }
            blocks
        });
        Ok(Self { worker })
    }

    /// Waits for its end, which a killed server brings about.
    pub fn finish(self) -> anyhow::Result<Expected> {
        Ok(Expected { blocks: self.worker.finish()? })
    }
}

fn offset(size_bytes: u64, count: usize, index: usize) -> u64 {
    let stride = size_bytes / count as u64 / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    stride * index as u64
}

impl Expected {
    /// Writes that were answered.
    pub fn answered(&self) -> u64 {
        self.blocks.iter().map(|known| known.answered).sum()
    }

    /// Looks at every block.
    pub fn check(&self, address: &Address) -> anyhow::Result<()> {
        let mut client = Client::connect(address)?;
        let size_bytes = client.size_bytes();
        for (index, known) in self.blocks.iter().enumerate() {
            let mut block = [0; BLOCK_BYTES];
            client.read(offset(size_bytes, self.blocks.len(), index), &mut block)?;
            self.check_block(index, *known, &block)?;
        }
        client.close()
    }

    fn check_block(&self, index: usize, known: Known, block: &[u8; BLOCK_BYTES]) -> anyhow::Result<()> {
        let mut wanted = [0; BLOCK_BYTES];
        for number in [known.answered, known.under_way] {
            if number == 0 {
                wanted.fill(0);
            } else {
                fill(&mut wanted, index, number);
            }
            if wanted == *block {
                return Ok(());
            }
        }
        let first: [u8; 8] = block[..8].try_into().context("eight bytes")?;
        let found = u64::from_le_bytes(first) >> 24;
        bail!(
            "block {index} holds {found}{}, but {} was answered and {} was under way",
            if block.chunks(8).all(|word| word == first) { "" } else { " (torn)" },
            known.answered,
            known.under_way
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_torn_and_foreign_blocks_are_recognised() {
        let expected = Expected { blocks: vec![] };
        let known = Known { answered: 7, under_way: 8 };
        let mut block = [0; BLOCK_BYTES];
        let check = |block: &[u8; BLOCK_BYTES]| expected.check_block(3, known, block).is_ok();
        assert!(!check(&block), "lost");
        fill(&mut block, 3, 7);
        assert!(check(&block));
        fill(&mut block, 3, 8);
        assert!(check(&block), "under way");
        block[4000] ^= 1;
        assert!(!check(&block), "torn");
        fill(&mut block, 3, 6);
        assert!(!check(&block), "stale");
        fill(&mut block, 4, 7);
        assert!(!check(&block), "misplaced");
    }
}

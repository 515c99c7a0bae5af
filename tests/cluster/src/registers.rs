//! Blocks of a volume as registers: clients on one or several hosts write and read the same blocks at the same time, and note
//! what they saw and when. Afterwards it is checked, by the simulator's own checker, whether one copy could have behaved so.
//!
//! Every write has a value of its own, which fills its block, so that a torn block is recognised too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sim::check::linear::{Step, register};

use crate::nbd::{Address, Client};
use crate::runs::Moments;
use crate::worker::Worker;

const BLOCK_BYTES: usize = 4096;
/// Registers, few enough that clients meet, spread over the volume.
const REGISTERS: u64 = 48;
/// A client's pause between two requests: the load is to last, and to be checked in memory.
const PAUSE_MAX: Duration = Duration::from_millis(4);

/// Clients at work.
pub struct Registers {
    clients: Vec<Worker<anyhow::Result<Vec<(u64, Step)>>>>,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    /// Registers.
    pub registers: u64,
    /// Requests.
    pub steps: u64,
}

impl Registers {
    /// Starts so many clients, in turn at each of the addresses, which are of one volume.
    pub fn start(addresses: &[Address], clients: u64, seed: u64) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let start = |(number, address): (u64, &Address)| -> anyhow::Result<_> {
            let client = Client::connect(address)?;
            let moments = Moments::new(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            Ok(Worker::start(move |stop| work(client, number, stop, begun, moments)))
        };
        let each = (1..=clients).zip(addresses.iter().cycle());
        let clients = each.map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { clients })
    }

    /// Ends them and checks what they saw. Any I/O error is an error.
    pub fn finish(self) -> anyhow::Result<Checked> {
        let mut registers: BTreeMap<u64, Vec<Step>> = BTreeMap::new();
        for client in self.clients {
            for (index, step) in client.finish()?? {
                registers.entry(index).or_default().push(step);
            }
        }
        let mut checked = Checked::default();
        for (index, steps) in &registers {
            register(steps).map_err(|text| anyhow::anyhow!("register {index} is not that of one copy: {text}"))?;
            checked.registers += 1;
            checked.steps += steps.len() as u64;
        }
        Ok(checked)
    }
}

fn work(
    mut client: Client,
    number: u64,
    stop: &AtomicBool,
    begun: Instant,
    mut moments: Moments,
) -> anyhow::Result<Vec<(u64, Step)>> {
    let stride = client.size_bytes() / REGISTERS / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let now = || u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut steps = Vec::new();
    let mut block = [0; BLOCK_BYTES];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let index = moments.number(REGISTERS);
        let writes = moments.number(2) == 0;
        let start = now();
        let value = if writes {
            count += 1;
            let value = (number << 40) | count;
            block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = value.to_le_bytes());
            client.write(index * stride, &block)?;
            value
        } else {
            client.read(index * stride, &mut block)?;
            whole(&block).with_context(|| format!("register {index}"))?
        };
        steps.push((index, Step { writes, value, start, end: now(), certain: true }));
        std::thread::sleep(moments.below(PAUSE_MAX));
    }
    client.close()?;
    Ok(steps)
}

/// The value that fills a block.
fn whole(block: &[u8; BLOCK_BYTES]) -> anyhow::Result<u64> {
    let words = block.as_chunks::<8>().0;
    let first = words.first().copied().unwrap_or_default();
    match words.iter().position(|word| *word != first) {
        Some(at) => bail!("the block is torn at byte {}", at * 8),
        None => Ok(u64::from_le_bytes(first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_block_is_none() {
        let mut block = [0; BLOCK_BYTES];
        block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = 77u64.to_le_bytes());
        assert_eq!(whole(&block).unwrap(), 77);
        block[4088] ^= 1;
        assert!(whole(&block).is_err());
    }
}

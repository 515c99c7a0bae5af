//! Random requests of every kind against a model: `hammer SOCKET EXPORT STATE OPERATIONS`. What a server must answer is
//! known byte by byte; where it has a choice (trimmed bytes read as before or as zeros) its choice is held to.
//!
//! STATE is a file that carries the model and the number of operations so far from run to run: the next run first makes
//! sure that the export still holds what the model says, then goes on. So long runs may be cut into pieces, and a server may
//! be restarted or upgraded in between.

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use sdc_nbd::client::Client;
use sdc_nbd::wire::{Command, command_flags};

/// Longest request, bytes.
const LENGTH_MAX: u64 = 256 << 10;
/// Connections that take turns: what one wrote the others read.
const CONNECTIONS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a run failed, in words.
pub type Failure = String;

fn words(what: impl Display) -> impl FnOnce(sdc_nbd::client::ClientError) -> Failure {
    move |error| format!("{what}: {error}")
}

/// A repeatable generator (xorshift*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct Hammer {
    clients: Vec<Client>,
    model: Vec<u8>,
    random: Random,
    buffer: Vec<u8>,
}

impl Hammer {
    /// A range: mostly small and unaligned, sometimes whole blocks, sometimes across many.
    fn range(&mut self) -> (u64, u64) {
        let size = self.model.len() as u64;
        let length_max = [512, 5000, 4096, 20_000, LENGTH_MAX][self.random.below(5) as usize];
        let length = (self.random.below(length_max) + 1).min(size);
        let offset = self.random.below(size - length + 1);
        if self.random.below(3) > 0 {
            return (offset, length);
        }
        let (start, end) = (offset / 4096 * 4096, (offset + length).next_multiple_of(4096).min(size));
        (start, end - start)
    }

    fn operation(&mut self) -> Result<(), Failure> {
        let (offset, length) = self.range();
        let client = self.random.below(CONNECTIONS as u64) as usize;
        let flags = if self.random.below(4) == 0 { command_flags::FUA } else { 0 };
        let range = offset as usize..(offset + length) as usize;
        let told = format!("{length} bytes at {offset}");
        let wire_length = u32::try_from(length).map_err(|_| "a range beyond 4 GiB")?;
        match self.random.below(20) {
            0..8 => {
                let seed = self.random.next();
                self.buffer.resize(range.len(), 0);
                let mut random = Random(seed | 1);
                self.buffer
                    .chunks_mut(8)
                    .for_each(|part| part.copy_from_slice(&random.next().to_le_bytes()[..part.len()]));
                self.clients[client].write(offset, &self.buffer).map_err(words(format!("write of {told}")))?;
                self.model[range].copy_from_slice(&self.buffer);
            }
            8..15 => self.compare(client, offset, length)?,
            15..17 => {
                let keep = if self.random.below(2) == 0 { command_flags::NO_HOLE } else { 0 };
                let done = self.clients[client].command(Command::WriteZeroes, flags | keep, offset, wire_length);
                done.map_err(words(format!("zeroing of {told}")))?;
                self.model[range].fill(0);
            }
            17 => {
                let done = self.clients[client].command(Command::Trim, flags, offset, wire_length);
                done.map_err(words(format!("trim of {told}")))?;
                self.learn(client, offset, length)?;
            }
            18 => {
                let done = self.clients[client].command(Command::Cache, 0, offset, wire_length);
                done.map_err(words(format!("cache of {told}")))?;
            }
            _ => self.clients[client].command(Command::Flush, 0, 0, 0).map_err(words("flush"))?,
        }
        Ok(())
    }

    fn read(&mut self, client: usize, offset: u64, length: u64) -> Result<(), Failure> {
        self.buffer.resize(length as usize, 0);
        let told = format!("read of {length} bytes at {offset}");
        self.clients[client].read(offset, &mut self.buffer).map_err(words(told))
    }

    fn compare(&mut self, client: usize, offset: u64, length: u64) -> Result<(), Failure> {
        self.read(client, offset, length)?;
        let expected = &self.model[offset as usize..(offset + length) as usize];
        match self.buffer.iter().zip(expected).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {} is {:#04x} and should be {:#04x}, in a read of {length} bytes at {offset}",
                offset + at as u64,
                self.buffer[at],
                expected[at]
            )),
        }
    }

    /// Trimmed bytes are as before or zero; whichever it is, it stays.
    fn learn(&mut self, client: usize, offset: u64, length: u64) -> Result<(), Failure> {
        self.read(client, offset, length)?;
        let known = &mut self.model[offset as usize..(offset + length) as usize];
        for (at, (found, known)) in self.buffer.iter().zip(known).enumerate() {
            if *found != 0 && found != known {
                return Err(format!("byte {} was trimmed and reads as {found:#04x}", offset + at as u64));
            }
            *known = *found;
        }
        Ok(())
    }

    fn compare_all(&mut self) -> Result<(), Failure> {
        let size = self.model.len() as u64;
        for offset in (0..size).step_by(1 << 20) {
            self.compare(0, offset, (size - offset).min(1 << 20))?;
        }
        Ok(())
    }
}

/// `operations SEED` and the model, as saved.
fn load(state: &Path) -> Result<Option<(u64, u64, Vec<u8>)>, Failure> {
    let Ok(bytes) = fs::read(state) else { return Ok(None) };
    let damaged = || format!("{} is no state of this program", state.display());
    let (head, model) = bytes.split_first_chunk::<16>().ok_or_else(damaged)?;
    let number = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|index| head[at + index]));
    Ok(Some((number(0), number(8), model.to_vec())))
}

fn save(state: &Path, operations: u64, seed: u64, model: &[u8]) -> Result<(), Failure> {
    let fresh = state.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&operations.to_le_bytes())?;
        file.write_all(&seed.to_le_bytes())?;
        file.write_all(model)?;
        file.sync_all()?;
        fs::rename(&fresh, state)
    };
    write().map_err(|error| format!("cannot write {}: {error}", state.display()))
}

/// Runs so many operations on an export and compares all of it at the end; how many there have been in all. Without a state
/// the export is zeroed first.
pub fn run(socket: &Path, export: &str, state: &Path, operations: u64) -> Result<u64, Failure> {
    let connect = |_| Client::connect(socket, export, PATIENCE).map_err(words("cannot connect"));
    let mut clients = (0..CONNECTIONS).map(connect).collect::<Result<Vec<_>, _>>()?;
    let size = clients[0].info().size_bytes;
    let (before, seed, model) = match load(state)? {
        Some((_, _, model)) if model.len() as u64 != size => {
            return Err(format!(
                "{} is about an export of {} bytes, this one has {size}",
                state.display(),
                model.len()
            ));
        }
        Some(saved) => saved,
        None => {
            for offset in (0..size).step_by(1 << 30) {
                let length = (size - offset).min(1 << 30) as u32;
                clients[0].command(Command::WriteZeroes, 0, offset, length).map_err(words("zeroing of all"))?;
            }
            (0, 0x9e37_79b9_7f4a_7c15, vec![0; size as usize])
        }
    };
    let mut hammer = Hammer { clients, model, random: Random(seed), buffer: Vec::new() };
    hammer.compare_all()?;
    for done in 0..operations {
        hammer.operation().map_err(|failure| format!("operation {}: {failure}", before + done))?;
    }
    hammer.compare_all()?;
    save(state, before + operations, hammer.random.0, &hammer.model)?;
    Ok(before + operations)
}

#[allow(dead_code)]
fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, export, state, operations] = &arguments[..] else {
        return Err("usage: hammer SOCKET EXPORT STATE OPERATIONS".to_owned());
    };
    let operations = operations.parse().map_err(|_| format!("{operations} is no number"))?;
    let all = run(Path::new(socket), export, Path::new(state), operations)?;
    println!("{all} operations in all, every byte as it should be");
    Ok(())
}

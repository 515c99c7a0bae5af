//! What is measured: one pattern of requests, for both sides.

use std::time::Duration;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// After so long.
    After(Duration),
    /// After so many bytes have been written, as a part of the journal: one in so many.
    PartOfJournal(u64),
}

/// Which way requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Durable writes.
    Write,
    /// Reads.
    Read,
    /// So many reads of a hundred requests, the rest durable writes.
    Mixed(u64),
}

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere in what was written before.
    Random,
    /// So many blocks, again and again.
    Hot(u64),
    /// One after the other, over what was written before.
    Sequential,
    /// Anywhere where nothing was written.
    Fresh,
    /// One after the other, where nothing was written.
    FreshSequential,
}

/// One pattern.
#[derive(Clone, Debug)]
pub struct Cell {
    /// In results and for `--only`.
    pub name: String,
    pub kind: Kind,
    pub place: Place,
    /// Bytes of a request: 4 KiB to 1 MiB.
    pub bytes: usize,
    /// Requests under way.
    pub depth: usize,
    pub stop: Stop,
    /// Measured once, not in rounds.
    pub is_long: bool,
    /// The bare side writes one block behind the other, whatever the place.
    pub raw_appends: bool,
}

impl Cell {
    /// True if it takes room that is given back behind it.
    pub fn is_fresh(&self) -> bool {
        matches!(self.place, Place::Fresh | Place::FreshSequential)
    }
}

/// All cells, in the order of measuring.
pub fn all(seconds: u64, sustained_seconds: u64) -> Vec<Cell> {
    let stop = Stop::After(Duration::from_secs(seconds));
    let cell = |name: &str, kind, place, bytes, depth| Cell {
        name: name.to_owned(),
        kind,
        place,
        bytes,
        depth,
        stop,
        is_long: false,
        raw_appends: false,
    };
    let mut cells = Vec::new();
    for depth in [1, 8, 32, 128] {
        cells.push(cell(&format!("4k-read-d{depth}"), Kind::Read, Place::Random, 4096, depth));
    }
    let first = cell("4k-write-d1-to-appends", Kind::Write, Place::Random, 4096, 1);
    cells.push(Cell { raw_appends: true, ..first });
    for depth in [1, 8, 32, 128] {
        cells.push(cell(&format!("4k-write-d{depth}"), Kind::Write, Place::Random, 4096, depth));
    }
    let burst = cell("4k-write-d32-burst", Kind::Write, Place::Random, 4096, 32);
    cells.push(Cell { stop: Stop::PartOfJournal(4), ..burst });
    let sustained = cell("4k-write-d32-sustained", Kind::Write, Place::Random, 4096, 32);
    cells.push(Cell { stop: Stop::After(Duration::from_secs(sustained_seconds)), is_long: true, ..sustained });
    cells.push(cell("4k-write-d32-hot", Kind::Write, Place::Hot(1000), 4096, 32));
    cells.push(cell("4k-write-d32-first", Kind::Write, Place::Fresh, 4096, 32));
    cells.push(cell("4k-mixed-70-30-d32", Kind::Mixed(70), Place::Random, 4096, 32));
    for (name, bytes) in [("64k", 64 << 10), ("1m", 1 << 20)] {
        cells.push(cell(&format!("{name}-write-d8-first"), Kind::Write, Place::FreshSequential, bytes, 8));
        cells.push(cell(&format!("{name}-write-d8"), Kind::Write, Place::Sequential, bytes, 8));
        cells.push(cell(&format!("{name}-read-d8"), Kind::Read, Place::Sequential, bytes, 8));
    }
    cells
}

/// What one side did in one run.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub operations: u64,
    pub seconds: f64,
    /// Bytes of data that requests wrote.
    pub written_bytes: u64,
    pub cpu_ns: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Bytes written to the device for each byte of data, while running.
    pub device_bytes: f64,
    /// The same, when all of it is applied.
    pub device_bytes_applied: f64,
    pub resident_bytes: u64,
}

impl Round {
    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    /// CPU microseconds of the whole process for each operation.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_ns as f64 / 1e3 / self.operations.max(1) as f64
    }
}

/// A cell and its medians.
pub struct Measured {
    pub cell: Cell,
    pub raw: Round,
    pub store: Round,
    /// The median of the ratios of the rounds.
    pub ratio: f64,
    /// System calls for each operation: bare, store.
    pub calls: Option<(f64, f64)>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl Measured {
    /// Takes medians. The round with the median ratio speaks for the others.
    pub fn of(cell: Cell, rounds: &[(Round, Round)], calls: Option<(f64, f64)>) -> Self {
        let ratio_of = |(raw, store): &(Round, Round)| store.rate() / raw.rate().max(1e-9);
        let ratio = median(rounds.iter().map(ratio_of).collect());
        let typical = rounds.iter().min_by(|a, b| (ratio_of(a) - ratio).abs().total_cmp(&(ratio_of(b) - ratio).abs()));
        let (raw, store) = typical.cloned().unwrap_or_default();
        Self { cell, raw, store, ratio, calls }
    }
}

/// Latencies of a run.
#[derive(Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// One more, in nanoseconds.
    pub fn add(&mut self, ns: u64) {
        self.0.push(u32::try_from(ns).unwrap_or(u32::MAX));
    }

    /// So many of a thousand are not above this, in microseconds.
    pub fn at(&mut self, thousandth: usize) -> f64 {
        self.0.sort_unstable();
        let at = self.0.len() * thousandth / 1000;
        self.0.get(at.min(self.0.len().saturating_sub(1))).map_or(0.0, |ns| f64::from(*ns) / 1e3)
    }
}

/// Small, seeded, good enough (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// Below the limit, which is above zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

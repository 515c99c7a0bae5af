//! A store at work, whose power fails after every kind of step; what the medium may then hold is opened and compared with the
//! model.

use std::collections::{BTreeMap, BTreeSet};

use super::compare::{
    compare_contents, compare_log, compare_payloads, compare_read, recovered_pg, state_bytes, touched,
};
use super::model::{Cell, PgModel, data, layer, pg, write, zero};
use super::{Disk, Machine, Random, open};
use mdm_api::epoch::{Epoch, Seq, Term, Version};
use mdm_api::ids::VtreeId;
use sds_api::block::LayerKey;
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody};
use sds_store::error::StoreError;
use sds_store::request::{Answer, LayerContent, Output, Request, Token};
use sds_store::store::Options;

const PGS: u32 = 3;
const SIZE: u64 = 16 << 20;
const JOURNAL: u64 = 256 << 10;

/// What is on its way while nothing else is.
#[derive(Clone, Debug)]
enum Change {
    Install(LayerKey, LayerContent),
    Remove(Vec<LayerKey>),
    Void(Seq),
    Forget,
}

struct World {
    machine: Machine,
    random: Random,
    models: Vec<PgModel>,
    appends: BTreeMap<Token, (u32, Seq)>,
    states: BTreeMap<Token, (u32, Seq, u64)>,
    promises: BTreeMap<Token, (u32, u64)>,
    change: Option<(Token, u32, Change)>,
    /// The tree of each group that may be dropped; a dropped one is never written again.
    trees: Vec<u64>,
    value: u64,
    images: u64,
    quiet: bool,
    options: Options,
    /// Of a hundred completed operations, after so many an image is looked at.
    image_chance: u64,
    repairs: BTreeSet<Token>,
}

/// Every other seed has little memory, every third makes a large write of what is hardly one.
pub fn options_of(seed: u64) -> Options {
    let mut options = Options::default();
    if seed.is_multiple_of(2) {
        (options.payload_cache_bytes, options.checksum_cache_bytes) = (0, 0);
    }
    if !seed.is_multiple_of(3) {
        options.large_blocks_min = 16;
    }
    options.scrub_period_ms = if seed.is_multiple_of(4) { 0 } else { 500 };
    options
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        Self {
            machine: Machine::fresh_with(SIZE, JOURNAL, options),
            random: Random(seed),
            models: vec![PgModel { term: 1, ..PgModel::default() }; PGS as usize],
            appends: BTreeMap::new(),
            states: BTreeMap::new(),
            promises: BTreeMap::new(),
            change: None,
            trees: vec![2; PGS as usize],
            value: seed << 32,
            images: 0,
            quiet: false,
            options,
            image_chance: number("STORE_IMAGE_CHANCE", 15),
            repairs: BTreeSet::new(),
        }
    }

    fn layer_of(&mut self, index: u32) -> LayerKey {
        let vtree = if self.random.chance(20) { self.trees[index as usize] } else { 1 };
        layer(vtree, u64::from(index) * 10 + self.random.below(3), self.random.below(3))
    }

    fn values(&mut self, count: u64) -> Vec<u64> {
        (0..count)
            .map(|_| {
                self.value += 1;
                self.value
            })
            .collect()
    }

    fn entry(&mut self, index: u32, seq: u64) -> Entry {
        let key = self.layer_of(index);
        let term = self.models[index as usize].term;
        let first = self.random.below(60) as u16;
        match self.random.below(100) {
            0..=5 => {
                let (first, units) = (16 * self.random.below(4) as u16, 1 + self.random.below(2));
                let values = self.values(16 * units);
                write(pg(index), term, seq, key, first, &values)
            }
            6..=74 => {
                let count = 1 + self.random.below(4);
                let values = self.values(count);
                write(pg(index), term, seq, key, first, &values)
            }
            75..=92 => zero(pg(index), term, seq, key, first, 1 + self.random.below(40) as u16),
            93 => {
                let body = EntryBody::DropVtree { vtree: VtreeId(self.trees[index as usize]) };
                self.trees[index as usize] += 1;
                Entry { body, ..zero(pg(index), term, seq, key, 0, 1) }
            }
            94..=96 => Entry { body: EntryBody::Elsewhere { layer: key }, ..zero(pg(index), term, seq, key, 0, 1) },
            _ => Entry { body: EntryBody::EpochStart { epoch: Epoch(term) }, ..zero(pg(index), term, seq, key, 0, 1) },
        }
    }

    fn refused(&mut self, token: Token) -> bool {
        let at = self
            .machine
            .outputs
            .iter()
            .position(|output| matches!(output, Output::Done { token: t, result: Err(_) } if *t == token));
        at.is_some_and(|at| self.machine.outputs.remove(at).is_some())
    }

    fn append(&mut self) {
        let index = self.random.below(u64::from(PGS)) as u32;
        let mut seq = self.models[index as usize].last().0.max(self.models[index as usize].state.0.0);
        seq = seq.max(self.models[index as usize].state_sent.last().map_or(0, |s| s.0.0));
        let count = 1 + self.random.below(3);
        let entries: Vec<Entry> = (1..=count).map(|next| self.entry(index, seq + next)).collect();
        let token = self.machine.request(Request::Append { entries: entries.clone() });
        if self.refused(token) {
            return;
        }
        let model = &mut self.models[index as usize];
        entries.into_iter().for_each(|entry| drop(model.entries.insert(entry.version.seq, entry)));
        self.appends.insert(token, (index, Seq(seq + count)));
        self.settle_outputs();
    }

    fn commit(&mut self) {
        let index = self.random.below(u64::from(PGS)) as u32;
        let model = &mut self.models[index as usize];
        if model.acked > model.committed {
            let step = 1 + self.random.below(model.acked.0 - model.committed.0);
            model.commit(Seq(model.committed.0 + step));
            self.machine.request(Request::Commit { pg: pg(index), through: model.committed });
        }
    }

    fn save_state(&mut self, index: u32) {
        let value = self.random.below(1 << 20);
        let through = self.models[index as usize].committed;
        let token = self.machine.request(Request::SaveState { pg: pg(index), through, state: state_bytes(value) });
        if !self.refused(token) {
            self.models[index as usize].state_sent.push((through, value));
            self.states.insert(token, (index, through, value));
        }
    }

    fn promise(&mut self) {
        let index = self.random.below(u64::from(PGS)) as u32;
        let model = &mut self.models[index as usize];
        model.promise.1 += 1;
        let term = model.promise.1;
        let token = self.machine.request(Request::Promise { pg: pg(index), term: Term(term) });
        if self.refused(token) {
            self.models[index as usize].promise.1 -= 1;
        } else {
            self.promises.insert(token, (index, term));
        }
    }

    /// A block gets the content that it has.
    fn repair(&mut self) {
        let index = self.random.below(u64::from(PGS)) as u32;
        let key = self.layer_of(index);
        let model = &self.models[index as usize];
        let contents = model.contents(model.committed);
        let Some(content) = contents.get(&key) else { return };
        let value = |(block, cell): (usize, &Option<Cell>)| match cell {
            Some(Cell::Value(value)) => Some((block as u16, *value)),
            Some(Cell::Zero) | None => None,
        };
        let values: Vec<(u16, u64)> = content.cells.iter().enumerate().filter_map(value).collect();
        if values.is_empty() {
            return;
        }
        let (block, value) = values[self.random.below(values.len() as u64) as usize];
        let data = data(&[value]);
        let checksum = block_checksums(&data)[0];
        let token = self.machine.request(Request::Repair { layer: key, block, checksum, data });
        self.repairs.insert(token);
        self.settle_outputs();
    }

    /// Waits until nothing is open, then begins a change that must be all there or not at all.
    fn begin_change(&mut self) {
        self.finish_requests();
        let index = self.random.below(u64::from(PGS)) as u32;
        let model = self.models[index as usize].clone();
        let (change, request) = match self.random.below(10) {
            0..=4 => {
                let key = self.layer_of(index);
                let content = self.copy(model.committed, model.term);
                if model.committed == Seq(0) {
                    return;
                }
                (Change::Install(key, content.clone()), Request::Install { pg: pg(index), layer: key, content })
            }
            5..=6 => {
                let layers = vec![self.layer_of(index), self.layer_of(index)];
                (Change::Remove(layers.clone()), Request::RemoveLayers { pg: pg(index), layers })
            }
            7..=8 => {
                let floor = model.committed.max(model.state_sent.last().map_or(model.state.0, |s| s.0));
                let after = Seq(floor.0 + self.random.below(model.last().0.saturating_sub(floor.0) + 1));
                (Change::Void(after), Request::Void { pg: pg(index), after })
            }
            _ => (Change::Forget, Request::ForgetPg { pg: pg(index) }),
        };
        let token = self.machine.request(request);
        if !self.refused(token) {
            self.change = Some((token, index, change));
        }
        self.settle_outputs();
    }

    fn copy(&mut self, version: Seq, term: u64) -> LayerContent {
        let mut content = LayerContent { version: Version { term: Term(term), seq: version }, ..Default::default() };
        let mut values = Vec::new();
        for block in 0..70 {
            match self.random.below(4) {
                0 | 1 => {
                    content.present.insert(block);
                    values.extend(self.values(1));
                }
                2 => content.zeroed.insert(block),
                _ => {}
            }
        }
        let bytes = data(&values);
        content.checksums = block_checksums(&bytes);
        let cut = (self.random.below(values.len() as u64 + 1) * 4096) as usize;
        content.data = vec![bytes.slice(..cut), bytes.slice(cut..)];
        content
    }

    fn changed(model: &PgModel, change: &Change) -> PgModel {
        let mut model = model.clone();
        match change {
            Change::Install(key, content) => model.install(*key, content),
            Change::Remove(layers) => layers.iter().for_each(|key| model.remove(*key)),
            Change::Void(after) => model.void(*after),
            Change::Forget => model = PgModel { term: model.term + 1, ..PgModel::default() },
        }
        model
    }

    fn settle_outputs(&mut self) {
        while let Some(output) = self.machine.outputs.pop_front() {
            match output {
                Output::Done { token, result } => {
                    if self.repairs.remove(&token) {
                        let moved = [StoreError::Changed, StoreError::NotFound, StoreError::NoJournalSpace];
                        assert!(result.as_ref().err().is_none_or(|error| moved.contains(error)), "{result:?}");
                    } else if let Some((index, seq)) = self.appends.remove(&token) {
                        result.unwrap();
                        let model = &mut self.models[index as usize];
                        model.acked = model.acked.max(seq);
                    } else if let Some((index, through, value)) = self.states.remove(&token) {
                        result.unwrap();
                        let model = &mut self.models[index as usize];
                        model.state = (through, value);
                        let at = model.state_sent.iter().position(|s| *s == (through, value)).unwrap();
                        model.state_sent.drain(..=at);
                    } else if let Some((index, term)) = self.promises.remove(&token) {
                        result.unwrap();
                        self.models[index as usize].promise.0 = term;
                    } else if self.change.as_ref().is_some_and(|(t, ..)| *t == token) {
                        let (_, index, change) = self.change.take().unwrap();
                        result.unwrap();
                        let model = &mut self.models[index as usize];
                        *model = Self::changed(model, &change);
                        model.term += u64::from(matches!(change, Change::Void(_)));
                    }
                }
                Output::WantState { pg } => {
                    if !self.quiet {
                        self.save_state(pg.index);
                    }
                }
                Output::BadBlock { layer, block, .. } => panic!("block {block} of {layer:?} is said to be bad"),
                // What this disk loses in a power cut is never what a scrub may complain about.
                Output::Damaged { damage } => panic!("{damage}"),
                Output::Failed { cause } => panic!("failed: {cause}"),
                Output::Disk(_) => unreachable!(),
            }
        }
    }

    fn complete_one(&mut self) {
        let count = self.machine.disk.in_flight.len() as u64;
        if count > 0 {
            let index = self.random.below(count) as usize;
            self.machine.complete(index);
        }
        self.settle_outputs();
    }

    fn finish_requests(&mut self) {
        self.quiet = true;
        for _ in 0..100_000 {
            if self.appends.is_empty() && self.states.is_empty() && self.promises.is_empty() && self.change.is_none() {
                self.quiet = false;
                return;
            }
            if self.machine.disk.in_flight.is_empty() {
                self.machine.tick(50);
            }
            self.complete_one();
        }
        panic!("requests are never answered");
    }

    /// A read of the running store sees what is committed, and nothing else.
    fn read_live(&mut self) {
        if self.change.is_some() {
            return;
        }
        let index = self.random.below(u64::from(PGS)) as u32;
        let key = self.layer_of(index);
        let model = &self.models[index as usize];
        let expected = model.contents(model.committed);
        let token = self.machine.request(Request::Read { layer: key, blocks: touched() });
        let mut answer = None;
        for _ in 0..10_000 {
            let at =
                self.machine.outputs.iter().position(|o| matches!(o, Output::Done { token: t, .. } if *t == token));
            if let Some(at) = at {
                answer = self.machine.outputs.remove(at);
                break;
            }
            let count = self.machine.disk.in_flight.len() as u64;
            let pick = self.random.below(count) as usize;
            self.machine.complete(pick);
        }
        let Some(Output::Done { result: Ok(Answer::Read(pieces)), .. }) = answer else { panic!("{answer:?}") };
        compare_read(&expected, key, pieces).unwrap();
        self.settle_outputs();
    }

    /// What may be on the medium now is opened and compared.
    fn check_image(&mut self) {
        let disk = self.machine.disk.crash(&mut self.random);
        self.images += 1;
        let applied = self.random.chance(20);
        self.check(&disk, applied);
    }

    /// Opens a copy of the disk and compares; says which of the two possible worlds it is: with the change under way or without.
    fn check(&mut self, disk: &Disk, applied: bool) -> bool {
        let without = self.compare(disk.clone(), &self.models, applied);
        let Err(first) = without else { return false };
        let Some((_, index, change)) = self.change.clone() else { panic!("{first}") };
        let mut models = self.models.clone();
        models[index as usize] = Self::changed(&models[index as usize], &change);
        if let Err(second) = self.compare(disk.clone(), &models, applied) {
            panic!("neither without {change:?}: {first}\nnor with it: {second}");
        }
        true
    }

    fn compare(&self, mut disk: Disk, models: &[PgModel], applied: bool) -> Result<(), String> {
        let (store, recovered) = open(&mut disk, self.options).map_err(|error| error.to_string())?;
        let mut machine = Machine::new(disk, store);
        for (index, model) in models.iter().enumerate() {
            let through = compare_log(&recovered, index as u32, model)?;
            compare_payloads(&mut machine, &recovered, index as u32, model)?;
            machine.request(Request::Commit { pg: pg(index as u32), through });
            if applied {
                machine.call(Request::Checkpoint).map_err(|error| error.to_string())?;
            }
            compare_contents(&mut machine, index as u32, &model.contents(through), applied)?;
        }
        Ok(())
    }

    /// The power goes; what is left becomes the world.
    fn crash(&mut self) {
        let disk = self.machine.disk.crash(&mut self.random);
        self.images += 1;
        let with_change = self.check(&disk, false);
        if let (true, Some((_, index, change))) = (with_change, self.change.take()) {
            let model = &mut self.models[index as usize];
            *model = Self::changed(model, &change);
        }
        let mut disk = disk;
        let (store, recovered) = open(&mut disk, self.options).unwrap();
        let (now, token) = (self.machine.now, self.machine.token);
        self.machine = Machine::new(disk, store);
        (self.machine.now, self.machine.token) = (now, token);
        self.change = None;
        self.appends.clear();
        self.repairs.clear();
        self.states.clear();
        self.promises.clear();
        for index in 0..PGS {
            let found = recovered_pg(&recovered, index);
            let model = &mut self.models[index as usize];
            let through = compare_log(&recovered, index, model).unwrap();
            model.entries.split_off(&through.next());
            model.acked = through;
            model.commit(found.committed);
            model.term += 1;
            model.promise = found.promise.map_or((0, 0), |term| (term.0, term.0));
            if let Some((seq, bytes)) = &found.state {
                model.state = (*seq, u64::from_le_bytes(bytes[..8].try_into().unwrap()));
            }
            model.state_sent.clear();
            self.machine.request(Request::Commit { pg: pg(index), through: model.committed });
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..=299 if self.change.is_none() => self.append(),
            300..=449 if self.change.is_none() => self.commit(),
            450..=479 => {
                let ms = [1, 30, 300, 1500][self.random.below(4) as usize];
                self.machine.tick(ms);
            }
            480..=489 if self.change.is_none() => self.promise(),
            490..=499 if self.change.is_none() => {
                let index = self.random.below(u64::from(PGS)) as u32;
                self.save_state(index);
            }
            500..=519 if self.change.is_none() => self.begin_change(),
            520..=539 => self.read_live(),
            540..=549 if self.change.is_none() => self.repair(),
            550..=554 => self.crash(),
            _ => {
                self.complete_one();
                if self.random.chance(self.image_chance) {
                    self.check_image();
                }
            }
        }
        self.settle_outputs();
    }
}

/// Runs a seed; how many images were opened. Panics at the first that is not as it must be.
pub fn run(seed: u64, steps: u64, options: Options) -> u64 {
    let mut world = World::new(seed, options);
    for _ in 0..steps {
        world.step();
    }
    world.finish_requests();
    world.machine.call(Request::Checkpoint).unwrap();
    let disk = world.machine.disk.clone();
    world.check(&disk, true);
    world.images
}

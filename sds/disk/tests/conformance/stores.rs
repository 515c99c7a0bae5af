//! A store on real block devices of both sector sizes, and what it says of devices that are not what they should be.

use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId, StoragePoolId, SystemId, VtreeId};
use sds_api::block::{BLOCK_BYTES, BlockRange, ChunkId, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody};
use sds_disk::EngineKind;
use sds_store::error::{FormatError, OpenError};
use sds_store::format::{FormatParameters, Formatter};
use sds_store::io::DiskRequest;
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::{Answer, Event, Output, PieceContent, Recovered, Request, Token, Verdict};
use sds_store::store::{Options, Store};

use crate::bench::{Bench, SIZE};
use crate::loop_device::LoopDevice;

const SYSTEM: SystemId = SystemId(0x51);
const PG: PgId = PgId { pool: StoragePoolId(1), index: 2 };
const LAYER: LayerKey = LayerKey { chunk: ChunkId { vtree: VtreeId(3), index: 4 }, snap_seq: SnapSeq(0) };

struct Rig {
    bench: Bench,
    store: Store,
    recovered: Recovered,
    token: u64,
    /// Operations whose answers were not taken.
    open: usize,
}

fn requests_done<T>(
    bench: &Bench,
    mut batch: Vec<DiskRequest>,
    mut step: impl FnMut(sds_store::io::DiskDone, &mut Vec<DiskRequest>) -> Option<T>,
) -> T {
    loop {
        if !batch.is_empty() {
            bench.device.submit(std::mem::take(&mut batch)).unwrap();
        }
        if let Some(result) = step(bench.wait_any(), &mut batch) {
            return result;
        }
    }
}

fn format(bench: &Bench, system: SystemId, force: bool) -> Result<(), FormatError> {
    let mut formatter = Formatter::new(FormatParameters {
        system,
        device: DeviceId(1),
        incarnation: DeviceIncarnation(1),
        size_bytes: bench.device.geometry().size,
        salt: 9,
        journal_bytes: Some(1 << 20),
        force,
    })?;
    let mut first = Vec::new();
    formatter.start(&mut first);
    requests_done(bench, first, |done, out| formatter.step(done, out)).map(|_| ())
}

fn try_open(bench: &Bench) -> Result<Opened, OpenError> {
    let size_bytes = bench.device.geometry().size;
    let options = Options { scrub_period_ms: 0, ..Options::default() };
    let mut opener =
        Opener::new(OpenParameters { size_bytes, system: Some(SYSTEM), options, ..OpenParameters::default() });
    let mut first = Vec::new();
    opener.start(&mut first)?;
    requests_done(bench, first, |done, out| opener.step(done, out))
}

impl Rig {
    fn open(path: &Path, kind: EngineKind) -> Result<Self, OpenError> {
        let bench = Bench::new_at(kind, path);
        let Opened { store, recovered } = try_open(&bench)?;
        Ok(Self { bench, store, recovered, token: 0, open: 0 })
    }

    fn formatted(path: &Path, kind: EngineKind) -> Self {
        format(&Bench::new_at(kind, path), SYSTEM, false).unwrap();
        Self::open(path, kind).unwrap()
    }

    /// Asks and carries out what follows until the answer is there.
    fn call(&mut self, request: Request) -> Answer {
        self.token += 1;
        let token = Token(self.token);
        let mut out = Vec::new();
        self.store.step(Nanos(self.token), Event::Request { token, request }, &mut out);
        loop {
            let (mut batch, mut answer) = (Vec::new(), None);
            for output in out.drain(..) {
                match output {
                    Output::Disk(request) => batch.push(request),
                    Output::Done { token: of, result } if of == token => answer = Some(result.unwrap()),
                    Output::Failed { cause } => panic!("{cause}"),
                    Output::Done { .. }
                    | Output::WantState { .. }
                    | Output::BadBlock { .. }
                    | Output::Damaged { .. } => {}
                }
            }
            self.open += batch.len();
            self.bench.device.submit(batch).unwrap();
            if let Some(answer) = answer {
                return answer;
            }
            let event = if self.open > 0 {
                self.open -= 1;
                Event::Disk(self.bench.wait_any())
            } else {
                Event::Tick
            };
            self.token += 1;
            self.store.step(Nanos(self.token * 50_000_000), event, &mut out);
        }
    }

    fn write(&mut self, seq: u64, first: u16, count: u16) {
        let data = bytes_of(seq, count);
        let blocks = BlockRange::new(first, count).unwrap();
        let body = EntryBody::Write { layer: LAYER, blocks, checksums: block_checksums(&data), data };
        let entry = Entry { pg: PG, version: Version { term: Term(1), seq: Seq(seq) }, identity: None, body };
        assert_eq!(self.call(Request::Append { entries: vec![entry] }), Answer::Done);
    }

    fn commit(&mut self, through: u64) {
        let mut out = Vec::new();
        let request = Request::Commit { pg: PG, through: Seq(through) };
        self.store.step(Nanos(0), Event::Request { token: Token(0), request }, &mut out);
        assert!(out.is_empty(), "{out:?}");
    }

    fn read(&mut self, first: u16, count: u16) -> Vec<u8> {
        let blocks = BlockRange::new(first, count).unwrap();
        let Answer::Read(pieces) = self.call(Request::Read { layer: LAYER, blocks }) else { panic!("no answer") };
        let bytes = |content| match content {
            PieceContent::Data { bytes, .. } => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        pieces.into_iter().flat_map(|piece| bytes(piece.content)).collect()
    }
}

fn bytes_of(seq: u64, count: u16) -> Bytes {
    let words = (0..usize::from(count) * BLOCK_BYTES / 8).flat_map(|at| (seq << 32 | at as u64).to_le_bytes());
    AlignedBuf::copy_of(&words.collect::<Vec<u8>>()).freeze()
}

/// A loop device over a file; says so and does nothing where there are none.
fn on_loop_device(sector: u32, test: impl FnOnce(&Path, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    sds_disk::create_file(&file, SIZE).unwrap();
    match LoopDevice::attach(&file, sector, false) {
        Ok(device) => test(&device.path, &file),
        Err(reason) => println!("skipped: no loop device with sectors of {sector} bytes: {reason}"),
    }
}

#[test]
fn a_store_lives_on_devices_of_both_sector_sizes_with_every_engine() {
    for sector in [512, 4096] {
        for kind in [EngineKind::Uring, EngineKind::Ring, EngineKind::Blocking] {
            on_loop_device(sector, |device, _| {
                let mut rig = Rig::formatted(device, kind);
                rig.write(1, 3, 2);
                rig.write(2, 64, 64); // large: to units of its own
                rig.commit(2);
                assert_eq!(rig.read(3, 2), bytes_of(1, 2));
                drop(rig);
                // As after a kill: nothing was applied.
                let mut rig = Rig::open(device, kind).unwrap();
                assert_eq!((rig.recovered.verdict, rig.recovered.pgs[0].entries.len()), (Verdict::Clean, 2));
                rig.commit(2);
                rig.call(Request::Checkpoint);
                assert_eq!((rig.read(3, 2), rig.read(64, 64)), (bytes_of(1, 2).to_vec(), bytes_of(2, 64).to_vec()));
                drop(rig);
                let mut rig = Rig::open(device, kind).unwrap();
                assert_eq!(rig.recovered.open_count, 3);
                assert_eq!((rig.read(3, 2), rig.read(64, 64)), (bytes_of(1, 2).to_vec(), bytes_of(2, 64).to_vec()));
            });
        }
    }
}

#[test]
fn a_store_moves_between_devices_of_both_sector_sizes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    sds_disk::create_file(&file, SIZE).unwrap();
    let mut sequence = 0;
    for sector in [512, 4096, 512] {
        let device = match LoopDevice::attach(&file, sector, false) {
            Ok(device) => device,
            Err(reason) => return println!("skipped: no loop device with sectors of {sector} bytes: {reason}"),
        };
        if sequence == 0 {
            drop(Rig::formatted(&device.path, EngineKind::Uring));
        }
        let mut rig = Rig::open(&device.path, EngineKind::Uring).unwrap();
        assert_eq!(rig.recovered.verdict, Verdict::Clean);
        if sequence > 0 {
            rig.commit(sequence);
            assert_eq!(rig.read(sequence as u16, 1), bytes_of(sequence, 1));
        }
        sequence += 1;
        rig.write(sequence, sequence as u16, 1);
    }
}

#[test]
fn a_device_of_another_system_is_refused_and_untouched() {
    on_loop_device(512, |device, file| {
        format(&Bench::new_at(EngineKind::Uring, device), SystemId(0x99), false).unwrap();
        let before = std::fs::read(file).unwrap();
        let error = Rig::open(device, EngineKind::Uring).err();
        assert!(matches!(error, Some(OpenError::OtherSystem { found: SystemId(0x99), .. })), "{error:?}");
        let bench = Bench::new_at(EngineKind::Uring, device);
        assert!(matches!(format(&bench, SYSTEM, false), Err(FormatError::AshlarDevice { .. })), "nor is it formatted");
        drop(bench);
        assert!(before == std::fs::read(file).unwrap(), "not a byte was changed");
    });
}

#[test]
fn a_wiped_device_is_not_taken_for_an_empty_one() {
    on_loop_device(4096, |device, _| {
        let mut rig = Rig::formatted(device, EngineKind::Uring);
        (1..=20).for_each(|seq| rig.write(seq, seq as u16, 1));
        drop(rig);
        let raw = std::fs::OpenOptions::new().write(true).open(device).unwrap();
        let zeros = vec![0; 1 << 20];
        // Its beginning alone: three super blocks are left, and the journal is missing what was durable.
        raw.write_all_at(&zeros, 0).unwrap();
        raw.sync_all().unwrap();
        let recovered = Rig::open(device, EngineKind::Uring).unwrap().recovered;
        assert!(matches!(recovered.verdict, Verdict::Suspect { .. }), "{:?}", recovered.verdict);
        // All of it.
        (0..SIZE >> 20).for_each(|at| raw.write_all_at(&zeros, at << 20).unwrap());
        raw.sync_all().unwrap();
        assert_eq!(Rig::open(device, EngineKind::Uring).err(), Some(OpenError::NotFormatted));
        format(&Bench::new_at(EngineKind::Uring, device), SYSTEM, false).unwrap();
    });
}

#[test]
fn a_clone_shows_itself_by_its_open_count() {
    on_loop_device(512, |device, file| {
        drop(Rig::formatted(device, EngineKind::Uring));
        let copy = file.with_extension("copy");
        std::fs::copy(file, &copy).unwrap();
        drop(Rig::open(device, EngineKind::Uring).unwrap());
        let original = Rig::open(device, EngineKind::Uring).unwrap().recovered.open_count;
        let clone = LoopDevice::attach(&copy, 512, false).unwrap();
        let cloned = Rig::open(&clone.path, EngineKind::Uring).unwrap().recovered.open_count;
        // What the metadata manager has recorded is the original's; a lower count is refused there.
        assert_eq!((original, cloned), (3, 2));
    });
}

#[test]
fn a_grown_device_opens_and_a_truncated_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    sds_disk::create_file(&file, SIZE).unwrap();
    let attach = || LoopDevice::attach(&file, 512, false);
    let resize = |size| std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(size).unwrap();
    match attach() {
        Ok(device) => drop(Rig::formatted(&device.path, EngineKind::Uring)),
        Err(reason) => return println!("skipped: no loop devices here: {reason}"),
    }
    resize(SIZE + (8 << 20));
    let grown = attach().unwrap();
    let recovered = Rig::open(&grown.path, EngineKind::Uring).unwrap().recovered;
    assert_eq!((recovered.open_count, recovered.verdict), (2, Verdict::Clean));
    drop(grown);
    resize(SIZE - (1 << 20));
    let error = Rig::open(&attach().unwrap().path, EngineKind::Uring).err();
    assert_eq!(error, Some(OpenError::Truncated { found: SIZE - (1 << 20), expected: SIZE }));
    // What was cut off does not come back with the size: the copy of the super block at the end is blank.
    resize(SIZE);
    let verdict = Rig::open(&attach().unwrap().path, EngineKind::Uring).unwrap().recovered.verdict;
    assert!(matches!(verdict, Verdict::Suspect { .. }), "{verdict:?}");
}

#[test]
fn a_busy_device_is_refused_until_it_is_free() {
    on_loop_device(512, |device, _| {
        let rig = Rig::formatted(device, EngineKind::Uring);
        let second = sds_disk::open(
            device,
            crate::bench::options(sds_disk::EngineChoice::Automatic),
            std::sync::Arc::new(|_| {}),
        );
        assert!(matches!(second.err(), Some(sds_disk::OpenError::InUse(_) | sds_disk::OpenError::Locked(_))));
        drop(rig);
        assert!(Rig::open(device, EngineKind::Uring).is_ok());
    });
}

//! A device as it is, with what the store writes kept in memory; and a store running on it, one request at a time.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq};
use sds_api::buf::AlignedBuf;
use sds_disk::InspectedDevice;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest};
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::{Answer, Event, Output, Recovered, Request, Token};
use sds_store::store::Store;

const PAGE: u64 = 4096;

/// The device under a sheet of glass.
pub struct Image {
    device: InspectedDevice,
    written: BTreeMap<u64, Bytes>,
}

impl Image {
    /// Opens a device for looking. One that a data server uses changes while it is looked at: that is refused.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let device = sds_disk::inspect(path)?;
        if device.is_locked().with_context(|| format!("cannot look at {}", path.display()))? {
            bail!("{} is in use by a data server: stop it first", path.display());
        }
        Ok(Self { device, written: BTreeMap::new() })
    }

    /// Bytes of the device.
    pub fn size(&self) -> u64 {
        self.device.size()
    }

    /// Reads, through what was written.
    pub fn read(&self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        let length = usize::try_from(length).map_err(|_| DiskError::Io)?;
        let mut buffer = AlignedBuf::zeroed(length.max(1));
        self.device.read_exact_at(&mut buffer, offset).map_err(|_| DiskError::Io)?;
        let end = offset + length as u64;
        for (at, page) in self.written.range(offset / PAGE * PAGE..end) {
            if *at >= offset && at + PAGE <= end {
                let from = usize::try_from(at - offset).map_err(|_| DiskError::Io)?;
                buffer[from..from + page.len()].copy_from_slice(page);
            }
        }
        Ok(buffer.freeze())
    }

    fn carry_out(&mut self, request: &DiskRequest) -> Result<Bytes, DiskError> {
        match &request.op {
            DiskOp::Read { offset, length } => self.read(*offset, u64::from(*length)),
            DiskOp::Write { offset, buffers, .. } => {
                let mut at = *offset;
                for buffer in buffers {
                    for page in buffer.chunks(PAGE as usize) {
                        self.written.insert(at, Bytes::copy_from_slice(page));
                        at += PAGE;
                    }
                }
                Ok(Bytes::new())
            }
            DiskOp::Flush | DiskOp::Discard { .. } => Ok(Bytes::new()),
        }
    }
}

/// A store on an image.
pub struct OfflineStore {
    image: Image,
    store: Store,
    /// What recovery found.
    pub recovered: Recovered,
    token: u64,
}

impl OfflineStore {
    /// Runs recovery.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut image = Image::open(path)?;
        let mut opener = Opener::new(OpenParameters { size_bytes: image.size(), ..OpenParameters::default() });
        let mut requests = Vec::new();
        opener.start(&mut requests)?;
        let mut at = 0;
        loop {
            let Some(request) = requests.get(at).cloned() else { bail!("{}: recovery came to no end", path.display()) };
            at += 1;
            let result = image.carry_out(&request);
            match opener.step(DiskDone { id: request.id, result }, &mut requests) {
                Some(Ok(Opened { store, recovered })) => return Ok(Self { image, store, recovered, token: 0 }),
                Some(Err(error)) => return Err(error).with_context(|| path.display().to_string()),
                None => {}
            }
        }
    }

    /// Takes every entry that is there as committed: right for a system that had come to rest, whose in-sync copies all
    /// have the same entries.
    pub fn commit_all(&mut self) {
        let ends: Vec<(mdm_api::ids::PgId, Seq)> = self
            .recovered
            .pgs
            .iter()
            .filter_map(|pg| pg.entries.last().map(|last| (pg.pg, last.entry.version.seq)))
            .collect();
        for (pg, through) in ends {
            self.step(Request::Commit { pg, through });
        }
    }

    /// Space figures.
    pub fn space(&self) -> sds_store::request::Space {
        self.store.space()
    }

    fn step(&mut self, request: Request) -> Vec<Output> {
        self.token += 1;
        let mut out = Vec::new();
        self.store.step(Nanos(self.token), Event::Request { token: Token(self.token), request }, &mut out);
        out
    }

    /// Asks the store and carries out what it needs until it has answered.
    pub fn ask(&mut self, request: Request) -> anyhow::Result<Answer> {
        let mut todo = self.step(request);
        let mut at = 0;
        let mut idle = 0;
        loop {
            let Some(output) = todo.get(at).cloned() else {
                idle += 1;
                if idle > 10_000 {
                    bail!("the store does not answer");
                }
                self.token += 1;
                self.store.step(Nanos(self.token * 1_000_000), Event::Tick, &mut todo);
                continue;
            };
            at += 1;
            match output {
                Output::Disk(request) => {
                    let result = self.image.carry_out(&request);
                    let done = Event::Disk(DiskDone { id: request.id, result });
                    self.store.step(Nanos(self.token), done, &mut todo);
                }
                Output::Done { result, .. } => return Ok(result?),
                Output::Failed { cause } => bail!("the store failed: {cause}"),
                Output::WantState { .. } | Output::BadBlock { .. } | Output::Damaged { .. } => {}
            }
        }
    }
}

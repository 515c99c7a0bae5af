//! What is drawn for a seed: the cluster, the load, the mix of faults. Every seed leaves out some faults altogether, so
//! that no kind always hides behind another (swarm testing).

use sds_store::layout::Geometry;

use crate::clock::{MS, SECOND, Time};
use crate::rng::Rng;
use crate::workload::Mix;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // their names say it; `faults` carries them out
pub enum Fault {
    CrashSds,
    CrashMdm,
    CrashSdc,
    PowerOne,
    PowerAll,
    Pause,
    Cut,
    CutOneWay,
    Isolate,
    Swizzle,
    Reset,
    HalfOpen,
    SlowLink,
    LossyLink,
    FlipBit,
    SlowDisk,
    ReadErrors,
    BadSector,
    WriteError,
    FlushError,
    WipeDevice,
    RollBackDevice,
    Hang,
    Full,
    Rot,
    Misdirect,
    Unmap,
    Resize,
    ForgetDevices,
    WipeMdm,
    Reject,
    CutFromMembers,
    AloneWithClient,
    UnmapWhileCut,
    LoseAnswers,
    LagAndWipe,
    RotMetadata,
    LateNews,
    LatePackets,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 39] = [
        Self::CrashSds,
        Self::CrashMdm,
        Self::CrashSdc,
        Self::PowerOne,
        Self::PowerAll,
        Self::Pause,
        Self::Cut,
        Self::CutOneWay,
        Self::Isolate,
        Self::Swizzle,
        Self::Reset,
        Self::HalfOpen,
        Self::SlowLink,
        Self::LossyLink,
        Self::FlipBit,
        Self::SlowDisk,
        Self::ReadErrors,
        Self::BadSector,
        Self::WriteError,
        Self::FlushError,
        Self::WipeDevice,
        Self::RollBackDevice,
        Self::Hang,
        Self::Full,
        Self::Rot,
        Self::Misdirect,
        Self::Unmap,
        Self::Resize,
        Self::ForgetDevices,
        Self::WipeMdm,
        Self::Reject,
        Self::CutFromMembers,
        Self::AloneWithClient,
        Self::UnmapWhileCut,
        Self::LoseAnswers,
        Self::LagAndWipe,
        Self::RotMetadata,
        Self::LateNews,
        Self::LatePackets,
    ];

    /// True if it may take what a device holds: only devices of one server get such.
    pub const fn destroys(self) -> bool {
        matches!(
            self,
            Self::WriteError
                | Self::FlushError
                | Self::WipeDevice
                | Self::RollBackDevice
                | Self::Hang
                | Self::Full
                | Self::Rot
                | Self::RotMetadata
                | Self::Misdirect
                | Self::BadSector
        )
    }
}

/// What was drawn.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Members of the metadata manager.
    pub mdms: usize,
    /// Data servers.
    pub sds: usize,
    /// Devices of each.
    pub devices: usize,
    /// Data clients.
    pub sdcs: usize,
    /// Volumes.
    pub volumes: usize,
    /// One volume in so many is used by two clients, where there are two.
    pub shares: u64,
    /// Chunks of each volume.
    pub chunks: u64,
    /// Placement groups.
    pub pg_count: u32,
    /// Copies.
    pub copies: u8,
    /// Least in-sync copies for a write.
    pub min_isr: u8,
    /// Bytes of each device.
    pub device_bytes: u64,
    /// Bytes of each journal: some times the largest append, which is two chunks.
    pub journal_bytes: u64,
    /// Memory of a server for entries that replicas may ask for which were away.
    pub retained_bytes: usize,
    /// Milliseconds over which a scrub of each device is spread; 0: there is none.
    pub scrub_period_ms: u64,
    /// How far clocks may be from true, in millionths.
    pub clock_spread_ppm: u64,
    /// Requests under way from each client to each volume.
    pub workers: usize,
    /// Requests a second of all clients together, as long as all are answered at once.
    pub rate: u64,
    /// The load.
    pub mix: Mix,
    /// How long writes to a volume stay with one of its chunks before they go on to the next; 0: they go everywhere.
    pub linger: Time,
    /// The fault phase.
    pub fault_time: Time,
    /// Mean time between faults.
    pub fault_every: Time,
    /// The kinds that happen, each as often as it stands here.
    pub faults: Vec<Fault>,
    /// The server whose devices may be damaged.
    pub damaged_sds: usize,
    /// Raft messages doubled, of a million.
    pub doubles_ppm: u64,
}

impl Plan {
    /// Draws one.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5157_4152_4d00);
        let rng = &mut rng;
        let sds = *rng.pick(&[2, 3, 3, 3, 4, 5]);
        let copies = if sds >= 3 && rng.one_in(4) { 3 } else { 2 };
        let min_isr = if copies == 3 { *rng.pick(&[1, 2]) } else { 1 };
        let mut faults = Vec::new();
        for fault in Fault::ALL.into_iter().filter(|fault| *fault != Fault::LatePackets) {
            if rng.one_in(3) {
                let weight = if fault == Fault::PowerAll { 1 } else { rng.between(1, 5) };
                faults.extend((0..weight).map(|_| fault));
            }
        }
        // Acknowledged writes survive the loss of all power in every seed.
        if !faults.contains(&Fault::PowerAll) {
            faults.push(Fault::PowerAll);
        }
        let mut plan = Self {
            mdms: *rng.pick(&[1, 3, 3, 3, 3, 5]),
            sds,
            devices: *rng.pick(&[1, 1, 2]),
            sdcs: *rng.pick(&[1, 2, 2, 3]),
            volumes: *rng.pick(&[1, 1, 2, 3]),
            shares: 2,
            chunks: rng.between(2, 4),
            pg_count: *rng.pick(&[4, 8, 8, 16]),
            copies,
            min_isr,
            device_bytes: *rng.pick(&[128 << 20, 512 << 20]),
            journal_bytes: *rng.pick(&[8 << 20, 12 << 20, 16 << 20]),
            retained_bytes: *rng.pick(&[0, 64 << 10, 64 << 20]),
            clock_spread_ppm: *rng.pick(&[0, 10_000, 50_000]),
            workers: *rng.pick(&[1, 2, 3]),
            rate: *rng.pick(&[14, 20, 30, 50]),
            mix: Mix {
                writes: *rng.pick(&[30, 45, 60]),
                zeros: *rng.pick(&[0, 0, 2, 5]),
                large: *rng.pick(&[0, 3, 10]),
                hot: *rng.pick(&[2, 8, 16]),
            },
            linger: 0,
            fault_time: 30 * SECOND + rng.below(10 * SECOND),
            fault_every: *rng.pick(&[700, 1500, 3000, 5000]) * MS,
            faults,
            damaged_sds: rng.index(sds),
            doubles_ppm: *rng.pick(&[0, 0, 50_000]),
            scrub_period_ms: *rng.pick(&[0, 10_000, 60_000]),
        };
        plan.grow_cold(&mut Rng::new(seed ^ 0x434f_4c44));
        plan.hold_up(&mut Rng::new(seed ^ 0x4c41_5445));
        plan
    }

    /// In some seeds, besides whatever else was drawn, requests come after their connection is over (F24).
    fn hold_up(&mut self, rng: &mut Rng) {
        if rng.one_in(8) {
            let weight = rng.between(2, 5);
            self.faults.extend((0..weight).map(|_| Fault::LatePackets));
        }
    }

    /// In some seeds what was written is left alone from then on, and much is written elsewhere, so that the journal soon
    /// forgets it: only there does everything hang on what metadata says at home.
    fn grow_cold(&mut self, rng: &mut Rng) {
        if self.rate >= 30 && rng.one_in(2) {
            self.linger = *rng.pick(&[2, 4, 7]) * SECOND;
            self.journal_bytes = 8 << 20;
        }
    }

    /// Where the data area of a device begins.
    pub fn data_offset(&self) -> u64 {
        Geometry::new(self.device_bytes, self.journal_bytes).map_or(0, |geometry| geometry.data_offset)
    }

    /// Hosts: members, servers, clients, and the people.
    pub fn nodes(&self) -> usize {
        self.mdms + self.sds + self.sdcs + 1
    }
}

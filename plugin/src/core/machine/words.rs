//! What is said between the machine and those who carry out: events, steps, outcomes, actions.

use mdm_api::epoch::Nanos;
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::model::{AccessMode, Limits};

use crate::core::content::Content;
use crate::core::facts::{Device, Facts};
use crate::core::labels::{FileSystem, MakeState, Spec};
use crate::core::record::Record;

/// When a volume is taken away from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// Never: a person does it.
    Never,
    /// When the system has not heard of that host for the grace time.
    WhenUnreachable,
    /// At once.
    Always,
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// When a volume is taken away from another host.
    pub preempt: Preempt,
    /// For how long the system must not have heard of it.
    pub grace_ms: u64,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Docker mounts for a container.
    Mount {
        /// Names who waits.
        token: u64,
        /// Docker's id of the mount.
        id: String,
        /// When he gives up.
        deadline: Nanos,
    },
    /// Docker unmounts.
    Unmount {
        /// Names who waits.
        token: u64,
        /// Docker's id of the mount.
        id: String,
        /// When he is answered at the latest; the rest goes on.
        deadline: Nanos,
    },
    /// Somebody waits until nothing of the volume is here, to remove it.
    Clear {
        /// Names who waits.
        token: u64,
        /// When he gives up.
        deadline: Nanos,
    },
    /// Who waited has gone.
    Abandon {
        /// His name.
        token: u64,
    },
    /// A person says that all mounts are to be forgotten.
    Release {
        /// Names who waits.
        token: u64,
        /// When he is answered at the latest; the rest goes on.
        deadline: Nanos,
    },
    /// No container has the volume: all ids that nobody waits for are left over.
    Unused,
    /// An engine says that it has just started.
    EngineStarted,
    /// The data client's side has changed: look at it.
    Inspect,
    /// The step under way has ended.
    Done(Outcome),
    /// Time has passed.
    Tick,
}

/// What is to be done: one step at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what the step is about
pub enum Step {
    /// Write the record.
    Keep(Record),
    /// Remove the record and the mount point.
    Forget,
    /// Gather the facts.
    Look,
    /// Map the volume to this host.
    Map { volume: VolumeId, access: AccessMode, limits: Limits, allow_multiple: bool },
    /// Change the limits of the mapping.
    Limit { volume: VolumeId, limits: Limits },
    /// Take the mapping away, from this host or from another; done once fenced.
    Unmap { volume: VolumeId, from: Option<SdcId> },
    /// Make it a block device.
    Attach { volume: VolumeId, revision: u64 },
    /// Take the block device away.
    Detach { volume: VolumeId },
    /// Look what is on it.
    Probe { device: Device },
    /// Note in the system how far the file system is.
    Label { volume: VolumeId, state: MakeState },
    /// Make the file system.
    Make { device: Device, spec: Spec },
    /// Check it.
    Check { device: Device, filesystem: FileSystem },
    /// Mount it.
    Mount { device: Device, spec: Spec, filesystem: Option<FileSystem> },
    /// Let it grow to its device.
    Grow { device: Device, filesystem: FileSystem },
    /// Unmount it.
    Unmount,
    /// Take a mount away whose device is no more.
    DropMount,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, nothing to tell.
    Done,
    /// To `Look`.
    Seen(Box<Facts>),
    /// To `Map`: what a client must have heard to know of it.
    Mapped {
        /// Revision of the map.
        revision: u64,
    },
    /// To `Attach`.
    Attached(Device),
    /// To `Probe`.
    Probed(Content),
    /// It did not work.
    Failed(Failure),
}

/// Why a step did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub text: String,
    /// Trying again by itself is of no use.
    pub is_final: bool,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Carry a step out, then say [`Event::Done`].
    Do(Step),
    /// Answer who waits.
    Answer {
        /// His name.
        token: u64,
        /// What to say.
        answer: Result<Answer, String>,
    },
    /// Say [`Event::Tick`] at that time; replaces what was said before.
    Wake(Nanos),
    /// For the log: what an operator wants to know of.
    Say(String),
}

/// A good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is mounted; the container gets the directory of the data in it, or its top.
    Mounted {
        /// The directory of the data.
        in_data: bool,
    },
    /// Done.
    Done,
}

/// What a step does, for people.
pub(super) fn word(step: &Step) -> String {
    match step {
        Step::Keep(_) => "keep the record on disk".to_owned(),
        Step::Forget => "remove the record".to_owned(),
        Step::Look => "look at the volume".to_owned(),
        Step::Map { .. } => "map the volume to this host".to_owned(),
        Step::Limit { .. } => "set the limits of the mapping".to_owned(),
        Step::Unmap { from: None, .. } => "unmap the volume from this host".to_owned(),
        Step::Unmap { from: Some(sdc), .. } => format!("take the volume away from host {sdc} and fence it"),
        Step::Attach { .. } => "attach the volume".to_owned(),
        Step::Detach { .. } => "detach the volume".to_owned(),
        Step::Probe { .. } => "look what is on the volume".to_owned(),
        Step::Label { .. } => "note the state of the file system".to_owned(),
        Step::Make { spec, .. } => format!("make an {} file system", spec.filesystem.name()),
        Step::Check { .. } => "check the file system".to_owned(),
        Step::Mount { .. } => "mount the file system".to_owned(),
        Step::Grow { .. } => "let the file system grow".to_owned(),
        Step::Unmount => "unmount the file system".to_owned(),
        Step::DropMount => "drop the stale mount".to_owned(),
    }
}

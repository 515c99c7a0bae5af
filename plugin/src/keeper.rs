//! One volume's keeper: carries out what the machine of [`crate::core::machine`] decides, and answers who waits.
//!
//! Commands are taken while a step is under way, so that nobody waits longer than his deadline for a tool that hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdm_api::client::ClientError;
use mdm_api::command::{AdminCommand, CommandAnswer, ObjectRef};
use mdm_api::epoch::Nanos;
use mdm_api::error::ErrorCode;
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::model::{AccessMode, Limits};
use rustix::mount::UnmountFlags;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::core::facts::{Facts, InSystem};
use crate::core::labels;
use crate::core::machine::{Action, Answer, Event, Failure, Machine, Outcome, Step};
use crate::core::mounts;
use crate::host::{Host, device_of};
use crate::store::Store;
use crate::sweep::Sight;
use crate::system::System;
use crate::tools;
use crate::tools::{blocking, definite, passing};
use crate::volumes::Volumes;

/// How long one question to the system may take within a step.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a change may take: longer than a fence is waited for.
const CHANGE_PATIENCE: Duration = Duration::from_secs(40);

/// What a keeper works with.
pub struct Means {
    /// The metadata managers.
    pub system: System,
    /// The data client and the mounts of this host.
    pub host: Host,
    /// Records on disk.
    pub store: Store,
    /// When the clock began.
    pub started: Instant,
    /// A mount that no container has is forgotten after so long; none: never.
    pub release_unused: Option<Duration>,
}

impl Means {
    /// The time.
    pub fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// What is answered in the end.
pub type Result = std::result::Result<Answer, String>;

/// What a keeper is asked.
pub enum Command {
    /// An event about which somebody waits, by the token in it.
    Ask {
        /// The event.
        event: Event,
        /// His token.
        token: u64,
        /// Where he waits.
        reply: oneshot::Sender<Result>,
    },
    /// An event.
    Tell(Event),
    /// What was seen of this host.
    Seen(Arc<Sight>),
    /// How many mounts hold the volume.
    Count(oneshot::Sender<usize>),
}

/// A keeper.
pub struct Keeper {
    name: String,
    means: Arc<Means>,
    machine: Machine,
    waiting: BTreeMap<u64, (Option<String>, oneshot::Sender<Result>)>,
    working: Option<JoinHandle<Outcome>>,
    wake: Option<Nanos>,
    /// The volume's id, once seen.
    volume: Option<VolumeId>,
    unused_since: Option<Instant>,
    seen_size_bytes: u64,
}

impl Keeper {
    /// Of a volume, with its machine.
    pub fn new(name: String, means: Arc<Means>, machine: Machine) -> Self {
        Self {
            name,
            means,
            machine,
            waiting: BTreeMap::new(),
            working: None,
            wake: None,
            volume: None,
            unused_since: None,
            seen_size_bytes: 0,
        }
    }

    /// Runs until nothing of the volume is left here and nobody asks.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>, volumes: Arc<Volumes>) {
        self.event(Event::Tick);
        loop {
            if self.machine.is_idle() && self.waiting.is_empty() && volumes.leave(&self.name, &commands) {
                return;
            }
            let wait = self.wake.map(|at| Duration::from_nanos(at.0.saturating_sub(self.means.now().0)));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                outcome = ended(&mut self.working) => {
                    self.working = None;
                    self.learn(&outcome);
                    self.event(Event::Done(outcome));
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {
                    self.wake = None;
                    self.event(Event::Tick);
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Ask { event, token, reply } => {
                let id = match &event {
                    Event::Mount { id, .. } => Some(id.clone()),
                    _ => None,
                };
                self.waiting.insert(token, (id, reply));
                self.event(event);
            }
            Command::Tell(event) => self.event(event),
            Command::Seen(sight) => self.seen(&sight),
            Command::Count(reply) => {
                // Who asked may have gone.
                let _gone = reply.send(self.machine.record().ids.len());
            }
        }
    }

    fn event(&mut self, event: Event) {
        if let Event::Abandon { token } = &event {
            self.waiting.remove(token);
        }
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.step(self.means.now(), event) {
                match action {
                    Action::Do(step) => {
                        self.working = Some(tokio::spawn(carry_out(self.means.clone(), self.name.clone(), step)))
                    }
                    Action::Wake(at) => self.wake = Some(at),
                    Action::Say(text) => tracing::warn!(volume = %self.name, "{text}"),
                    Action::Answer { token, answer } => events.extend(self.answer(token, answer)),
                }
            }
        }
    }

    /// Answers. A mount that nobody hears of any more is one that Docker takes for failed: it is undone.
    fn answer(&mut self, token: u64, answer: Result) -> Option<Event> {
        let (id, reply) = self.waiting.remove(&token)?;
        let is_mount = matches!(answer, Ok(Answer::Mounted { .. }));
        if reply.send(answer).is_ok() {
            return None;
        }
        let deadline = self.means.now();
        id.filter(|_| is_mount).map(|id| Event::Unmount { token, id, deadline })
    }

    fn learn(&mut self, outcome: &Outcome) {
        if let Outcome::Seen(facts) = outcome {
            if let Ok(Some(system)) = &facts.system {
                self.volume = Some(system.volume);
            }
            if let Ok(Some(device)) = &facts.device {
                self.seen_size_bytes = device.size_bytes;
            }
        }
    }

    /// Compares what was seen of this host with what should be: a device that changed is looked at, a mount that no
    /// container has any more is forgotten in time.
    fn seen(&mut self, sight: &Sight) {
        if self.machine.record().ids.is_empty() {
            self.unused_since = None;
            return;
        }
        let point = self.means.host.mount_point(&self.name).display().to_string();
        let mounted = mounts::at(&sight.own_mounts, &point);
        let local = sight.volumes.as_ref().and_then(|all| all.iter().find(|local| Some(local.volume) == self.volume));
        let device = local.and_then(|local| device_of(local).ok().flatten());
        if let (Some(number), Some(_)) = (mounted, &sight.volumes) {
            let same = device.as_ref().is_some_and(|d| d.number == number && d.size_bytes == self.seen_size_bytes);
            if !same {
                self.event(Event::Inspect);
            }
        }
        let number = mounted.or_else(|| device.map(|device| device.number));
        let is_used =
            number.is_some_and(|number| sight.all_mounts.iter().any(|table| mounts::is_used(table, number, &point)));
        if is_used {
            self.unused_since = None;
            return;
        }
        let since = *self.unused_since.get_or_insert_with(Instant::now);
        if self.means.release_unused.is_some_and(|limit| since.elapsed() >= limit) {
            self.unused_since = None;
            self.event(Event::Unused);
        }
    }
}

/// The end of what is under way; never, if nothing is.
async fn ended(working: &mut Option<JoinHandle<Outcome>>) -> Outcome {
    match working {
        Some(task) => task.await.unwrap_or_else(|error| Outcome::Failed(passing(format!("a task failed: {error}")))),
        None => std::future::pending().await,
    }
}

/// Carries one step out.
async fn carry_out(means: Arc<Means>, name: String, step: Step) -> Outcome {
    let begun = Instant::now();
    let label = format!("{step:?}");
    let label = label.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
    let outcome = attempt(&means, &name, step).await.unwrap_or_else(Outcome::Failed);
    tracing::debug!(volume = %name, step = %label, ms = begun.elapsed().as_millis(), "a step has ended");
    outcome
}

async fn attempt(means: &Means, name: &str, step: Step) -> std::result::Result<Outcome, Failure> {
    let point = means.host.mount_point(name);
    let done = |()| Outcome::Done;
    match step {
        Step::Keep(record) => {
            let store = means.store.clone();
            let put = move || store.put(&record).map_err(|error| definite(format!("cannot keep the record: {error}")));
            blocking(put).await.map(done)
        }
        Step::Forget => {
            let (store, name) = (means.store.clone(), name.to_owned());
            blocking(move || forget(&store, &name, &point)).await.map(done)
        }
        Step::Look => look(means, name).await,
        Step::Map { volume, access, limits, allow_multiple } => {
            map(means, volume, access, limits, allow_multiple).await
        }
        Step::Limit { volume, limits } => {
            let sdc = reference(means.host.sdc().await?);
            let command = AdminCommand::SetMappingLimits { volume: reference(volume), sdc, limits };
            change(means, command).await.map(|_| Outcome::Done)
        }
        Step::Unmap { volume, from } => unmap(means, volume, from).await,
        Step::Attach { volume, revision } => means.host.attach(volume, revision).await.map(Outcome::Attached),
        Step::Detach { volume } => means.host.detach(volume).await.map(done),
        Step::Probe { device } => tools::probe(&device).await.map(Outcome::Probed),
        Step::Label { volume, state } => {
            let (key, value) = (labels::STATE.to_owned(), state.word().to_owned());
            let command = AdminCommand::LabelVolume { volume: reference(volume), key, value };
            change(means, command).await.map(|_| Outcome::Done)
        }
        Step::Make { device, spec } => tools::make(&device, &spec, &means.host.staging(name)).await.map(done),
        Step::Check { device, filesystem } => tools::check(&device, filesystem).await.map(done),
        Step::Mount { device, spec, filesystem } => tools::mount(&device, &spec, filesystem, &point).await.map(done),
        Step::Grow { device, filesystem } => tools::grow(&device, filesystem, &point).await.map(done),
        Step::Unmount => tools::unmount_all(&point, UnmountFlags::empty()).await.map(done),
        Step::DropMount => tools::unmount_all(&point, UnmountFlags::DETACH).await.map(done),
    }
}

fn reference(id: impl ToString) -> ObjectRef {
    ObjectRef(id.to_string())
}

/// Removes the mount points, which are empty, and then the record.
fn forget(store: &Store, name: &str, point: &std::path::Path) -> std::result::Result<(), Failure> {
    match std::fs::remove_dir(point) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(passing(format!("cannot remove the mount point {}: {error}", point.display())));
        }
        _ => {}
    }
    let staging = point.parent().map(|parent| parent.join(".making").join(name));
    if let Some(staging) = staging
        && let Err(error) = std::fs::remove_dir(&staging)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(passing(format!("cannot remove {}: {error}", staging.display())));
    }
    store.remove(name).map_err(|error| passing(format!("cannot remove the record: {error}")))
}

/// All facts: of the system, of the data client, of the mount table.
async fn look(means: &Means, name: &str) -> std::result::Result<Outcome, Failure> {
    let status = means.host.status().await;
    let own = means.host.known_sdc();
    let system = match own {
        None => Err("who this host is in the system is not known: its data client does not answer".to_owned()),
        Some(own) => match means.system.view(LOOK_PATIENCE).await {
            Ok(view) => Ok(InSystem::find(&view, name, own)),
            Err(error) => Err(error.to_string()),
        },
    };
    let volume = system.as_ref().ok().and_then(|found| found.as_ref()).map(|found| found.volume);
    let device = match &status {
        Err(failure) => Err(failure.text.clone()),
        Ok(status) => match status.volumes.iter().find(|local| Some(local.volume) == volume) {
            Some(local) => device_of(local).map_err(|failure| failure.text),
            None => Ok(None),
        },
    };
    let table = tools::own_mounts().map_err(|error| passing(format!("cannot read the mount table: {error}")))?;
    let mounted = mounts::at(&table, &means.host.mount_point(name).display().to_string());
    Ok(Outcome::Seen(Box::new(Facts { system, device, mounted })))
}

async fn change(means: &Means, command: AdminCommand) -> std::result::Result<CommandAnswer, Failure> {
    means.system.change(command, CHANGE_PATIENCE).await.map_err(refused)
}

fn refused(error: ClientError) -> Failure {
    let text = error.to_string();
    match error {
        ClientError::Refused(refused) => match refused.code {
            ErrorCode::VolumeNotFound
            | ErrorCode::PermissionDenied
            | ErrorCode::WrongPassword
            | ErrorCode::InvalidArgument
            | ErrorCode::TooMany => definite(text),
            _ => passing(text),
        },
        ClientError::Unavailable(_) => passing(text),
    }
}

async fn map(
    means: &Means,
    volume: VolumeId,
    access: AccessMode,
    limits: Limits,
    allow_multiple: bool,
) -> std::result::Result<Outcome, Failure> {
    let sdc = reference(means.host.sdc().await?);
    let command = AdminCommand::MapVolume { volume: reference(volume), sdc, access, limits, allow_multiple };
    match change(means, command).await? {
        CommandAnswer::Mapping { fence_revision, .. } => Ok(Outcome::Mapped { revision: fence_revision.0 }),
        other => Err(passing(format!("unexpected answer to a mapping: {other:?}"))),
    }
}

/// Takes a mapping away; the answer comes when the client can write no more. One that is gone already is success.
async fn unmap(means: &Means, volume: VolumeId, from: Option<SdcId>) -> std::result::Result<Outcome, Failure> {
    let sdc = match from {
        Some(sdc) => sdc,
        None => means.host.sdc().await?,
    };
    let command = AdminCommand::UnmapVolume { volume: reference(volume), sdc: Some(reference(sdc)) };
    match means.system.change(command, CHANGE_PATIENCE).await {
        Ok(_) => {
            if from.is_some() {
                tracing::warn!(%volume, %sdc, "the volume was taken away from another host, which can write no more");
            }
            Ok(Outcome::Done)
        }
        Err(ClientError::Refused(error)) if error.code == ErrorCode::NotMapped => Ok(Outcome::Done),
        Err(error) => Err(refused(error)),
    }
}

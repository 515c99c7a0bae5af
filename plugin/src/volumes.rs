//! The keepers of this host's volumes: at most one for each name.
//!
//! Always true: a command reaches a keeper that will take it, since commands are put in, and keepers leave, under one lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mdm_api::epoch::Nanos;
use tokio::sync::{mpsc, oneshot};

use crate::core::machine::{Answer, Event, Machine, Policy};
use crate::core::record::Record;
use crate::keeper::{Command, Keeper, Means};
use crate::sweep::Sight;

/// Commands that wait for one keeper; more are refused.
const QUEUE: usize = 256;
/// Volumes that are looked after at a time.
const KEEPERS_MAX: usize = 4096;

/// All keepers.
pub struct Volumes {
    means: Arc<Means>,
    policy: Policy,
    boot: String,
    keepers: Mutex<BTreeMap<String, mpsc::Sender<Command>>>,
    next_token: AtomicU64,
}

/// Tells the keeper when who waits has gone.
struct Waiting<'a> {
    volumes: &'a Arc<Volumes>,
    name: &'a str,
    token: u64,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let keepers = self.volumes.lock();
        let Some(keeper) = keepers.get(self.name) else { return };
        let abandon = Command::Tell(Event::Abandon { token: self.token });
        if let Err(mpsc::error::TrySendError::Full(command)) = keeper.try_send(abandon) {
            let keeper = keeper.clone();
            tokio::spawn(async move {
                // A keeper that has left has nobody waiting.
                let _left = keeper.send(command).await;
            });
        }
    }
}

impl Volumes {
    /// Takes up what was on disk.
    pub fn start(means: Arc<Means>, policy: Policy, boot: String, records: Vec<Record>) -> Arc<Self> {
        let volumes =
            Arc::new(Self { means, policy, boot, keepers: Mutex::new(BTreeMap::new()), next_token: AtomicU64::new(1) });
        let mut keepers = volumes.lock();
        for record in records {
            let name = record.name.clone();
            let fresh = record.clone().after_start(&volumes.boot);
            if fresh != record {
                tracing::info!(volume = %name, "its mounts ended with the last run of this host");
            }
            keepers.insert(name, volumes.keeper(fresh, true));
        }
        drop(keepers);
        volumes
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::Sender<Command>>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeper(self: &Arc<Self>, record: Record, is_on_disk: bool) -> mpsc::Sender<Command> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let name = record.name.clone();
        let machine = Machine::new(self.policy, record, is_on_disk);
        let keeper = Keeper::new(name, self.means.clone(), machine);
        tokio::spawn(keeper.run(queue, self.clone()));
        commands
    }

    /// A keeper asks to leave: true if nobody has asked it anything meanwhile.
    pub fn leave(&self, name: &str, queue: &mpsc::Receiver<Command>) -> bool {
        let mut keepers = self.lock();
        if !queue.is_empty() {
            return false;
        }
        keepers.remove(name);
        true
    }

    /// Asks the keeper of a volume, and waits for its answer.
    pub async fn ask(
        self: &Arc<Self>,
        name: &str,
        patience: Duration,
        event: impl FnOnce(u64, Nanos) -> Event,
    ) -> Result<Answer, String> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let deadline = self.means.now().plus_ms(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        let (reply, answer) = oneshot::channel();
        self.send(name, Command::Ask { event: event(token, deadline), token, reply })?;
        let mut waiting = Waiting { volumes: self, name, token, is_answered: false };
        let answer = answer.await.unwrap_or_else(|_| Err("the plugin is ending".to_owned()));
        waiting.is_answered = true;
        answer
    }

    fn send(self: &Arc<Self>, name: &str, command: Command) -> Result<(), String> {
        let mut keepers = self.lock();
        if !keepers.contains_key(name) {
            if keepers.len() >= KEEPERS_MAX {
                return Err(format!("{KEEPERS_MAX} volumes are looked after already: try again"));
            }
            let record = Record::new(name, &self.boot);
            keepers.insert(name.to_owned(), self.keeper(record, false));
        }
        let Some(keeper) = keepers.get(name) else { return Err("the plugin is ending".to_owned()) };
        keeper.try_send(command).map_err(|_| format!("too many requests wait for volume '{name}': try again"))
    }

    /// How many mounts hold a volume on this host.
    pub async fn count(&self, name: &str) -> usize {
        let (reply, count) = oneshot::channel();
        let asked = self.lock().get(name).is_some_and(|keeper| keeper.try_send(Command::Count(reply)).is_ok());
        if asked { count.await.unwrap_or(0) } else { 0 }
    }

    /// Tells all keepers. One that is too busy to hear it has work of the engine that it is about.
    pub fn tell_all(&self, event: &Event) {
        for keeper in self.lock().values() {
            let _busy = keeper.try_send(Command::Tell(event.clone()));
        }
    }

    /// Shows all keepers what was seen of this host. One that is too busy sees it next time.
    pub fn show(&self, sight: &Arc<Sight>) {
        for keeper in self.lock().values() {
            let _busy = keeper.try_send(Command::Seen(sight.clone()));
        }
    }

    /// True if nothing of any volume is here.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What keepers work with.
    pub fn means(&self) -> &Arc<Means> {
        &self.means
    }
}

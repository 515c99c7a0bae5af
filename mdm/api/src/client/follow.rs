//! Following the map, from whichever member answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::connection::{Connection, Connector, FramedReader};
use super::search::first_answer;
use crate::control::{ControlMessage, MdmAddress};
use crate::epoch::Revision;
use crate::ids::MdmId;
use crate::limits::{FOLLOW_SILENCE_MS, FOLLOW_SILENCE_MS_MAX};
use crate::map::{MapDelta, MapObject, MapView};

/// Pause before the next member is tried.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Where the members are, learnt from the configuration at first and from the map later; and who leads, as far as somebody
/// has said. Shared and cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Members {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    list: Vec<String>,
    /// Those that the map told.
    by_id: BTreeMap<MdmId, String>,
    leader: Option<MdmId>,
    leader_changes: u64,
}

impl Members {
    /// Starts from configured addresses.
    pub fn new(addresses: Vec<String>) -> Self {
        Self { known: Arc::new(Mutex::new(Known { list: addresses, ..Known::default() })) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What is known is whole at every moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.lock().list.clone()
    }

    /// A member has said who leads.
    pub fn led_by(&self, leader: MdmId) {
        let mut known = self.lock();
        if known.leader.replace(leader) != Some(leader) {
            known.leader_changes += 1;
        }
    }

    /// How many times another member was said to lead than before.
    pub(super) fn leader_changes(&self) -> u64 {
        self.lock().leader_changes
    }

    /// Who leads, and where it is.
    pub fn leader(&self) -> Option<MdmAddress> {
        let known = self.lock();
        let id = known.leader?;
        Some(MdmAddress { id, address: known.by_id.get(&id)?.clone() })
    }

    /// Takes the members' addresses from the map in place of what was known, if there are any.
    pub fn replace(&self, members: &[MdmAddress]) {
        if !members.is_empty() {
            let mut known = self.lock();
            known.list = members.iter().map(|member| member.address.clone()).collect();
            known.by_id = members.iter().map(|member| (member.id, member.address.clone())).collect();
        }
    }

    /// Takes addresses in place of what was known, if there are any; whose they are is not known then.
    pub fn replace_addresses(&self, addresses: Vec<String>) {
        if !addresses.is_empty() {
            let mut known = self.lock();
            known.list = addresses;
            known.by_id.clear();
        }
    }

    /// Adds where somebody says a member is.
    pub fn add(&self, member: &MdmAddress) {
        let mut known = self.lock();
        if !known.list.contains(&member.address) {
            known.list.push(member.address.clone());
        }
        known.by_id.insert(member.id, member.address.clone());
    }
}

/// Follows the map in a task of its own, which ends when the receiver is dropped. Deltas arrive in order, each following on
/// the one before; the channel is bounded, a slow consumer slows the member's pushes and gets larger steps.
pub fn follow(connector: Connector, members: Members, view: MapView, have: Revision) -> mpsc::Receiver<MapDelta> {
    let (deltas, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut have = have;
        let mut turn = 0;
        let mut patience_ms = FOLLOW_SILENCE_MS;
        while !deltas.is_closed() {
            let mut addresses = members.addresses();
            let first = turn % addresses.len().max(1);
            addresses.rotate_left(first);
            let mut following = Following { members: &members, have: &mut have, deltas: &deltas, patience_ms };
            let (place, ended) = following.follow_one(&connector, &addresses, view).await;
            if let Err(error) = ended {
                let address = addresses.get(place).map(String::as_str).unwrap_or_default();
                tracing::debug!(address, %error, "the map is followed elsewhere");
            }
            patience_ms = following.patience_ms;
            turn = first + place + 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    });
    receiver
}

struct Following<'a> {
    members: &'a Members,
    have: &'a mut Revision,
    deltas: &'a mpsc::Sender<MapDelta>,
    /// How long the next member may be silent. Grows while none speaks.
    patience_ms: u64,
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Following<'_> {
    /// Follows the first member that answers, for as long as it speaks. Which one it was, and why that ended.
    async fn follow_one(&mut self, connector: &Connector, addresses: &[String], view: MapView) -> (usize, Ended) {
        let patience = Duration::from_millis(self.patience_ms);
        self.patience_ms = (2 * self.patience_ms).min(FOLLOW_SILENCE_MS_MAX);
        let connecting = first_answer(addresses, |address| {
            let connector = connector.clone();
            async move { connector.connect(&address).await }
        });
        match tokio::time::timeout(patience, connecting).await {
            Ok(Some(Ok((place, connection)))) => (place, self.follow_here(connection, view, patience).await),
            Ok(Some(Err(error))) => (0, Err(error.into())),
            Ok(None) => (0, Err("no address of a metadata manager is known".into())),
            Err(late) => (0, Err(late.into())),
        }
    }

    async fn follow_here(&mut self, mut connection: Connection, view: MapView, patience: Duration) -> Ended {
        tracing::debug!(mdm = %connection.mdm, "the map is followed");
        connection.writer.send(&ControlMessage::Follow { view, have: *self.have }).await?;
        self.listen(&mut connection.reader, patience).await
    }

    /// Takes what comes until it ends, or nothing comes for too long: `patience` at first, the usual span once the member
    /// has spoken.
    async fn listen<R: AsyncRead + Unpin>(&mut self, reader: &mut FramedReader<R>, mut patience: Duration) -> Ended {
        while let Some(message) = tokio::time::timeout(patience, reader.next()).await?? {
            let ControlMessage::Push(delta) = message else { continue };
            self.patience_ms = FOLLOW_SILENCE_MS;
            patience = Duration::from_millis(FOLLOW_SILENCE_MS);
            // A member that lags behind another one sends what is held already, and one with nothing new an empty step.
            if delta.to <= *self.have {
                continue;
            }
            if delta.from != *self.have && delta.from != Revision(0) {
                return Err(format!("a step from revision {} where {} is held", delta.from, self.have).into());
            }
            learn_members(self.members, &delta);
            *self.have = delta.to;
            if self.deltas.send(delta).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn learn_members(members: &Members, delta: &MapDelta) {
    let addresses = |delta: &MapDelta| -> Vec<MdmAddress> {
        let mdms = delta.changed.iter().filter_map(|object| match object {
            MapObject::Mdm(mdm) => Some(MdmAddress { id: mdm.id, address: mdm.address.clone() }),
            _ => None,
        });
        mdms.collect()
    };
    if delta.from == Revision(0) {
        members.replace(&addresses(delta));
    } else {
        addresses(delta).iter().for_each(|member| members.add(member));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::FramedWriter;

    // F2: a host that vanishes says nothing, and its connections break only after seconds.
    #[tokio::test]
    async fn a_member_that_has_spoken_is_left_after_the_usual_silence_however_long_the_search_for_it_took() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut reader, mut writer) = (FramedReader::new(ours), FramedWriter::new(theirs));
        let (deltas, mut receiver) = mpsc::channel(1);
        let (members, mut have) = (Members::default(), Revision(4));
        let patience_ms = FOLLOW_SILENCE_MS_MAX;
        let mut following = Following { members: &members, have: &mut have, deltas: &deltas, patience_ms };
        let step = MapDelta { from: Revision(4), to: Revision(5), ..MapDelta::default() };
        writer.send(&ControlMessage::Push(step.clone())).await.unwrap();
        let listening = following.listen(&mut reader, Duration::from_millis(FOLLOW_SILENCE_MS_MAX));
        let left = tokio::time::timeout(Duration::from_millis(3 * FOLLOW_SILENCE_MS), listening).await;
        assert!(left.expect("it is left").is_err(), "for its silence");
        assert_eq!(receiver.recv().await, Some(step));
        assert_eq!(have, Revision(5));
    }
}

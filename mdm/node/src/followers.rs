//! Who is connected, and the steps of the map that followers are sent.
//!
//! Always true: of each connection at most one step is under way; the next is made when the shell has written it, from
//! what the follower then has to what the map then is. So a slow follower costs one step's memory and gets larger steps.
//! A follower hears nothing from a member that has lost the group, and empty steps from one that is in touch with it while
//! nothing changes: so it knows when to follow elsewhere.

use std::collections::BTreeMap;

use mdm_api::control::PeerRole;
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::ids::SdcId;
use mdm_api::limits::FOLLOW_KEEPALIVE_MS;
use mdm_api::map::{MapDelta, MapView};
use mdm_core::State;

use crate::event::{Action, ConnectionId};
use crate::session::Session;

/// A connection.
pub(crate) struct Connection {
    pub(crate) peer: PeerRole,
    pub(crate) session: Option<Session>,
    follows: Option<Follows>,
}

struct Follows {
    view: MapView,
    have: Revision,
    is_writing: bool,
    /// When it was last sent a step.
    told_at: Nanos,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Connections {
    all: BTreeMap<ConnectionId, Connection>,
}

impl Connections {
    pub(crate) fn insert(&mut self, id: ConnectionId, peer: PeerRole) {
        self.all.insert(id, Connection { peer, session: None, follows: None });
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.all.remove(&id)
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.all.get_mut(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn followers(&self) -> usize {
        self.all.values().filter(|connection| connection.follows.is_some()).count()
    }

    /// Clients that follow the map here.
    pub(crate) fn following_clients(&self) -> impl Iterator<Item = SdcId> {
        self.all.values().filter(|connection| connection.follows.is_some()).filter_map(|c| match c.peer {
            PeerRole::Sdc(sdc) => Some(sdc),
            _ => None,
        })
    }

    /// Begins to follow. False if the view is not the caller's own.
    pub(crate) fn follow(&mut self, id: ConnectionId, view: MapView, have: Revision, now: Nanos) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return true };
        let is_own = match (connection.peer, view) {
            (PeerRole::Sds(peer), MapView::Sds(viewed)) => peer == viewed,
            (PeerRole::Sdc(peer), MapView::Sdc(viewed)) => peer == viewed,
            _ => false,
        };
        if is_own {
            connection.follows = Some(Follows { view, have, is_writing: false, told_at: now });
        }
        is_own
    }

    pub(crate) fn push_written(&mut self, id: ConnectionId) {
        if let Some(follows) = self.all.get_mut(&id).and_then(|connection| connection.follows.as_mut()) {
            follows.is_writing = false;
        }
    }

    /// Sends steps to those who wait for one.
    pub(crate) fn push(&mut self, state: &State, now: Nanos, out: &mut Vec<Action>) {
        for (id, connection) in &mut self.all {
            if let Some(follows) = &mut connection.follows {
                follows.push(*id, state, now, out);
            }
        }
    }

    /// Tells those who have heard nothing for a while that nothing has changed.
    pub(crate) fn keep_alive(&mut self, state: &State, now: Nanos, out: &mut Vec<Action>) {
        for (id, connection) in &mut self.all {
            if let Some(follows) = &mut connection.follows
                && now.ms_since(follows.told_at) >= FOLLOW_KEEPALIVE_MS
            {
                follows.keep_alive(*id, state, now, out);
            }
        }
    }

    /// Sends one follower a step if it waits for one.
    pub(crate) fn push_one(&mut self, id: ConnectionId, state: &State, now: Nanos, out: &mut Vec<Action>) {
        if let Some(follows) = self.all.get_mut(&id).and_then(|connection| connection.follows.as_mut()) {
            follows.push(id, state, now, out);
        }
    }
}

impl Follows {
    fn push(&mut self, connection: ConnectionId, state: &State, now: Nanos, out: &mut Vec<Action>) {
        if self.is_writing || self.have >= state.revision() || !self.is_known(state) {
            return;
        }
        let delta = state.delta(self.view, self.have);
        self.have = delta.to;
        self.send(connection, delta, now, out);
    }

    fn keep_alive(&mut self, connection: ConnectionId, state: &State, now: Nanos, out: &mut Vec<Action>) {
        if self.is_writing || !self.is_known(state) {
            return;
        }
        let delta = MapDelta { from: self.have, to: self.have, ..MapDelta::default() };
        self.send(connection, delta, now, out);
    }

    /// One that this member knows nothing of is told nothing: it was removed, or this member has yet to hear of it.
    fn is_known(&self, state: &State) -> bool {
        let is_known = match self.view {
            MapView::Sds(sds) => state.sds().contains_key(&sds),
            MapView::Sdc(sdc) => state.sdcs().contains_key(&sdc),
        };
        is_known || self.have > Revision(0)
    }

    fn send(&mut self, connection: ConnectionId, delta: MapDelta, now: Nanos, out: &mut Vec<Action>) {
        (self.is_writing, self.told_at) = (true, now);
        out.push(Action::Push { connection, delta });
    }
}

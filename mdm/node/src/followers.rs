//! Who is connected, and the steps of the map that followers are sent.
//!
//! Always true: of each connection at most one step is under way; the next is made when the shell has written it, from
//! what the follower then has to what the map then is. So a slow follower costs one step's memory and gets larger steps.

use std::collections::BTreeMap;

use mdm_api::control::PeerRole;
use mdm_api::epoch::Revision;
use mdm_api::ids::SdcId;
use mdm_api::map::MapView;
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
    pub(crate) fn follow(&mut self, id: ConnectionId, view: MapView, have: Revision) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return true };
        let is_own = match (connection.peer, view) {
            (PeerRole::Sds(peer), MapView::Sds(viewed)) => peer == viewed,
            (PeerRole::Sdc(peer), MapView::Sdc(viewed)) => peer == viewed,
            _ => false,
        };
        if is_own {
            connection.follows = Some(Follows { view, have, is_writing: false });
        }
        is_own
    }

    pub(crate) fn push_written(&mut self, id: ConnectionId) {
        if let Some(follows) = self.all.get_mut(&id).and_then(|connection| connection.follows.as_mut()) {
            follows.is_writing = false;
        }
    }

    /// Sends steps to those who wait for one.
    pub(crate) fn push(&mut self, state: &State, out: &mut Vec<Action>) {
        for (id, connection) in &mut self.all {
            if let Some(follows) = &mut connection.follows {
                follows.push(*id, state, out);
            }
        }
    }

    /// Sends one follower a step if it waits for one.
    pub(crate) fn push_one(&mut self, id: ConnectionId, state: &State, out: &mut Vec<Action>) {
        if let Some(follows) = self.all.get_mut(&id).and_then(|connection| connection.follows.as_mut()) {
            follows.push(id, state, out);
        }
    }
}

impl Follows {
    fn push(&mut self, connection: ConnectionId, state: &State, out: &mut Vec<Action>) {
        if self.is_writing || self.have >= state.revision() {
            return;
        }
        // One that this member knows nothing of is told nothing: it was removed, or this member has yet to hear of it.
        let is_known = match self.view {
            MapView::Sds(sds) => state.sds().contains_key(&sds),
            MapView::Sdc(sdc) => state.sdcs().contains_key(&sdc),
        };
        if !is_known && self.have == Revision(0) {
            return;
        }
        let delta = state.delta(self.view, self.have);
        self.have = delta.to;
        self.is_writing = true;
        out.push(Action::Push { connection, delta });
    }
}

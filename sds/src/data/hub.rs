//! What the tasks of the shard thread share: the shard, the queue of what happened, and who is connected.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use mdm_api::ids::{SdsId, SystemId};
use sds_node::{Event, Shard};
use tokio::sync::Notify;

use super::client::Client;
use super::links::Links;
use super::socket::Socket;

/// Events that wait before readers wait too.
const EVENTS_WAITING: usize = 1024;

/// Shared by all tasks of the shard thread. No borrow lives across an await.
pub(crate) struct Hub {
    pub(crate) system: SystemId,
    pub(crate) sds: SdsId,
    pub(crate) shard: RefCell<Shard>,
    events: RefCell<VecDeque<Event>>,
    arrived: Notify,
    taken: Notify,
    pub(crate) clients: RefCell<BTreeMap<u64, Rc<Client>>>,
    pub(crate) links: RefCell<BTreeMap<SdsId, Links>>,
    /// Sockets with something to write at the end of the turn.
    dirty: RefCell<Vec<Rc<Socket>>>,
    pub(crate) next_connection: Cell<u64>,
    pub(crate) connections: Cell<usize>,
}

impl Hub {
    pub(crate) fn new(system: SystemId, sds: SdsId, shard: Shard) -> Rc<Self> {
        Rc::new(Self {
            system,
            sds,
            shard: RefCell::new(shard),
            events: RefCell::default(),
            arrived: Notify::new(),
            taken: Notify::new(),
            clients: RefCell::default(),
            links: RefCell::default(),
            dirty: RefCell::default(),
            next_connection: Cell::new(1),
            connections: Cell::new(0),
        })
    }

    /// Something happened.
    pub(crate) fn push(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
        self.arrived.notify_one();
    }

    /// For readers of sockets: waits while too much waits already.
    pub(crate) async fn push_slowly(&self, event: Event) {
        while self.events.borrow().len() >= EVENTS_WAITING {
            self.taken.notified().await;
        }
        self.push(event);
    }

    pub(crate) fn take(&self) -> VecDeque<Event> {
        let events = std::mem::take(&mut *self.events.borrow_mut());
        if events.len() >= EVENTS_WAITING {
            self.taken.notify_waiters();
        }
        events
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }

    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// The socket has something to write.
    pub(crate) fn touch(&self, socket: &Rc<Socket>) {
        let mut dirty = self.dirty.borrow_mut();
        if !dirty.last().is_some_and(|last| Rc::ptr_eq(last, socket)) {
            dirty.push(socket.clone());
        }
    }

    /// The end of a turn: everything is written.
    pub(crate) fn flush(&self) {
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        dirty.iter().for_each(|socket| socket.flush());
    }
}

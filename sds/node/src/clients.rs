//! Client connections, the volumes open on them, and the opening of a volume.

use std::collections::BTreeMap;

use mdm_api::epoch::{AttachGeneration, Nanos, Revision};
use mdm_api::ids::{DeviceId, PgId, SdcId, VolumeId};
use mdm_api::model::AccessMode;
use mdm_api::ticket::{Ticket, TicketError, client_proof, equal, server_proof};
use sds_api::open::OpenRefusal;

use crate::action::Action;
use crate::event::ClientOpen;
use crate::limits::{CLIENTS_MAX, HANDLES_MAX, OPEN_PATIENCE_MS, TICKET_SKEW_S, WAITING_OPENS_MAX};
use crate::report::OperationKind;
use crate::shard::Shard;

/// A volume that is open on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    pub(crate) volume: VolumeId,
    pub(crate) sdc: SdcId,
    pub(crate) generation: AttachGeneration,
    pub(crate) access: AccessMode,
}

/// A request that a replica has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) pg: PgId,
    pub(crate) device: DeviceId,
    pub(crate) kind: OperationKind,
    pub(crate) bytes: u32,
    pub(crate) since: Nanos,
}

#[derive(Default)]
pub(crate) struct Client {
    pub(crate) handles: BTreeMap<u32, Handle>,
    next_handle: u32,
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
}

/// All clients.
#[derive(Default)]
pub(crate) struct Clients {
    all: BTreeMap<u64, Client>,
    waiting: Vec<(Nanos, ClientOpen)>,
    requests: usize,
}

impl Clients {
    pub(crate) fn get(&self, connection: u64) -> Option<&Client> {
        self.all.get(&connection)
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn handles(&self) -> usize {
        self.all.values().map(|client| client.handles.len()).sum()
    }

    /// Requests that replicas have.
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn close_handle(&mut self, connection: u64, handle: u32) {
        if let Some(client) = self.all.get_mut(&connection) {
            client.handles.remove(&handle);
        }
    }

    pub(crate) fn gone(&mut self, connection: u64) {
        if let Some(client) = self.all.remove(&connection) {
            self.requests -= client.in_flight.len();
        }
        self.waiting.retain(|(_, open)| open.connection != connection);
    }

    /// A replica gets the request. `false`: its tag is in use.
    pub(crate) fn began(&mut self, connection: u64, tag: u64, request: InFlight) -> bool {
        let Some(client) = self.all.get_mut(&connection) else { return false };
        if client.in_flight.contains_key(&tag) {
            return false;
        }
        client.in_flight.insert(tag, request);
        self.requests += 1;
        true
    }

    /// A replica has answered. `None`: nobody waits for it any more.
    pub(crate) fn ended(&mut self, connection: u64, tag: u64) -> Option<InFlight> {
        let request = self.all.get_mut(&connection)?.in_flight.remove(&tag)?;
        self.requests -= 1;
        Some(request)
    }

    /// The requests that a replica has: connection and tag.
    pub(crate) fn held_by(&self, pg: PgId, device: DeviceId) -> Vec<(u64, u64)> {
        let of = |request: &InFlight| request.pg == pg && request.device == device;
        let tags = |(connection, client): (&u64, &Client)| -> Vec<(u64, u64)> {
            client.in_flight.iter().filter(|(_, r)| of(r)).map(|(tag, _)| (*connection, *tag)).collect()
        };
        self.all.iter().flat_map(tags).collect()
    }
}

/// What is wrong with an opening.
type Refused = (OpenRefusal, String);

impl Shard {
    pub(crate) fn client_open(&mut self, open: ClientOpen, out: &mut Vec<Action>) {
        match self.check_open(&open) {
            Ok((ticket, proof)) => self.opened(&open, &ticket, proof, out),
            Err(Some(refused)) => refuse(&open, refused, out),
            // The map is older than the ticket: its mapping may be newer than what is known here.
            Err(None) if self.clients.waiting.len() < WAITING_OPENS_MAX => {
                self.clients.waiting.push((self.now.plus_ms(OPEN_PATIENCE_MS), open));
            }
            Err(None) => refuse(&open, (OpenRefusal::Retry, "too many openings wait for the map".to_owned()), out),
        }
    }

    /// The ticket and this server's proof, or what is wrong; `None`: the map must catch up first.
    fn check_open(&self, open: &ClientOpen) -> Result<(Ticket, [u8; 32]), Option<Refused>> {
        let other = |text: String| Some((OpenRefusal::Other, text));
        if self.context.is_none() || !self.is_current() {
            return Err(Some((OpenRefusal::Retry, "this server is still starting".to_owned())));
        }
        let key = |id| self.map.domain_key(id).cloned();
        let checked = Ticket::check(&open.ticket, self.settings.system, open.now_s, TICKET_SKEW_S, key);
        let (ticket, secret) = checked.map_err(|error| Some((code(error), error.to_string())))?;
        if ticket.sdc != open.sdc {
            return Err(other(format!("the ticket is of client {}, not of {}", ticket.sdc, open.sdc)));
        }
        let nonces = (&open.server_nonce, &open.client_nonce);
        let proof = client_proof(&secret, &open.ticket, self.settings.sds, nonces.0, nonces.1);
        if !equal(&proof, &open.proof) {
            return Err(other(TicketError::BadProof.to_string()));
        }
        if self.map.revision() < ticket.revision {
            return Err(None);
        }
        self.check_rights(&ticket).map_err(Some)?;
        Ok((ticket.clone(), server_proof(&secret, &open.ticket, self.settings.sds, nonces.0, nonces.1)))
    }

    fn check_rights(&self, ticket: &Ticket) -> Result<(), Refused> {
        let fenced = |text: &str| Err((OpenRefusal::Fenced, text.to_owned()));
        let Some(volume) = self.map.volume(ticket.volume).filter(|volume| !volume.removing) else {
            return fenced("the volume was removed");
        };
        if volume.pool != ticket.pool {
            return Err((OpenRefusal::Ticket, "the ticket names another pool".to_owned()));
        }
        match self.map.mapping(ticket.volume, ticket.sdc) {
            None => fenced("the volume is not mapped to this client"),
            Some(mapping) if mapping.revoked || mapping.generation > ticket.generation => {
                fenced("the mapping was revoked, or opened anew")
            }
            Some(mapping) if mapping.generation < ticket.generation => {
                Err((OpenRefusal::Retry, "the mapping is newer than the map".to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    fn opened(&mut self, open: &ClientOpen, ticket: &Ticket, proof: [u8; 32], out: &mut Vec<Action>) {
        let is_new = !self.clients.all.contains_key(&open.connection);
        if is_new && self.clients.all.len() >= CLIENTS_MAX {
            return refuse(open, (OpenRefusal::Other, "this server has too many clients".to_owned()), out);
        }
        let client = self.clients.all.entry(open.connection).or_default();
        if client.handles.len() >= HANDLES_MAX || client.next_handle == u32::MAX {
            return refuse(open, (OpenRefusal::Other, "too many volumes on one connection".to_owned()), out);
        }
        client.next_handle += 1;
        let (connection, request, handle) = (open.connection, open.request, client.next_handle);
        let (volume, sdc) = (ticket.volume, ticket.sdc);
        client.handles.insert(handle, Handle { volume, sdc, generation: ticket.generation, access: ticket.access });
        out.push(Action::Opened { connection, request, handle, proof });
    }

    /// The map has moved: openings that waited for it.
    pub(crate) fn retry_opens(&mut self, out: &mut Vec<Action>) {
        for (deadline, open) in std::mem::take(&mut self.clients.waiting) {
            match self.check_open(&open) {
                Ok((ticket, proof)) => self.opened(&open, &ticket, proof, out),
                Err(Some(refused)) => refuse(&open, refused, out),
                Err(None) => self.clients.waiting.push((deadline, open)),
            }
        }
    }

    pub(crate) fn expire_opens(&mut self, out: &mut Vec<Action>) {
        let (now, revision) = (self.now, self.map.revision());
        self.clients.waiting.retain(|(deadline, open)| {
            let is_late = *deadline <= now;
            if is_late {
                refuse(open, (OpenRefusal::Retry, behind(revision)), out);
            }
            !is_late
        });
    }
}

fn behind(revision: Revision) -> String {
    format!("this server's map, at revision {revision}, is older than the ticket")
}

fn refuse(open: &ClientOpen, (code, text): Refused, out: &mut Vec<Action>) {
    out.push(Action::OpenRefused { connection: open.connection, request: open.request, code, text });
}

fn code(error: TicketError) -> OpenRefusal {
    match error {
        TicketError::Expired | TicketError::UnknownKey(_) => OpenRefusal::Ticket,
        TicketError::Malformed | TicketError::BadSignature | TicketError::BadProof | TicketError::OtherSystem(_) => {
            OpenRefusal::Other
        }
    }
}

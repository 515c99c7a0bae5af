//! A client's request, from the wire to the replica that leads: every right that it needs is checked here, against the map
//! of this moment. The bytes of a write are verified by the replica, once.

use mdm_api::epoch::SnapSeq;
use mdm_api::ids::{DeviceId, PgId};
use mdm_api::model::AccessMode;
use mdm_api::placement::{CHUNK_BYTES, pg_index};
use sds_api::block::LayerKey;
use sds_api::client::{ClientError, ClientOperation, ClientReply, ClientRequest};
use sds_api::entry::WriteIdentity;
use sds_replica::{ClientRef, Event as ReplicaEvent};

use crate::action::Action;
use crate::clients::{Handle, InFlight};
use crate::limits::REQUESTS_PER_CLIENT_MAX;
use crate::report::OperationKind;
use crate::shard::{Shard, Work};

impl Handle {
    /// The same over every connection that the session ever has (I16).
    fn identity(&self, operation: &ClientOperation) -> Option<WriteIdentity> {
        match operation {
            ClientOperation::Write { identity, .. } | ClientOperation::Zero { identity, .. } => Some(WriteIdentity {
                volume: self.volume,
                sdc: self.sdc,
                session: self.generation,
                request: identity.request,
                oldest_unacked: identity.oldest_unacked,
            }),
            ClientOperation::Read { .. } | ClientOperation::Status { .. } => None,
        }
    }
}

/// A request that may be carried out.
struct Admitted {
    pg: PgId,
    device: DeviceId,
    layer: LayerKey,
    identity: Option<WriteIdentity>,
}

impl Shard {
    pub(crate) fn client_request(&mut self, connection: u64, request: ClientRequest, out: &mut Vec<Action>) {
        let tag = request.tag;
        let admitted = match self.admit(connection, &request) {
            Ok(admitted) => admitted,
            Err(error) => {
                self.counters.refused(&error);
                out.push(Action::Reply { connection, reply: ClientReply { tag, result: Err(error) } });
                return;
            }
        };
        self.throttle.served(self.now);
        let (_, length) = request.operation.range();
        let in_flight = InFlight {
            pg: admitted.pg,
            device: admitted.device,
            kind: OperationKind::of(&request.operation),
            bytes: length,
            since: self.now,
        };
        if !self.clients.began(connection, tag, in_flight) {
            let text = format!("two requests with the tag {tag} at once");
            out.push(Action::CloseClient { connection, text });
            return;
        }
        let event = ReplicaEvent::Client {
            client: ClientRef { connection, tag },
            operation: request.operation,
            identity: admitted.identity,
            layer: admitted.layer,
        };
        self.work.push_back(Work::Replica { pg: admitted.pg, device: admitted.device, event });
    }

    fn admit(&self, connection: u64, request: &ClientRequest) -> Result<Admitted, ClientError> {
        let client = self.clients.get(connection).ok_or(ClientError::UnknownHandle)?;
        let handle = client.handles.get(&request.handle).ok_or(ClientError::UnknownHandle)?;
        if client.in_flight.len() >= REQUESTS_PER_CLIENT_MAX {
            return Err(ClientError::Retry);
        }
        self.check_handle(handle, request)?;
        let snap_seq = self.check_place(handle, request)?;
        let layer = LayerKey { chunk: request.chunk, snap_seq };
        let device = self.leader(request)?;
        Ok(Admitted { pg: request.pg, device, layer, identity: handle.identity(&request.operation) })
    }

    /// For observers: the identity under which a client's change is ordered (I16). None for what changes nothing, and for
    /// a handle that is not open.
    pub fn identity_of(&self, connection: u64, request: &ClientRequest) -> Option<WriteIdentity> {
        self.clients.get(connection)?.handles.get(&request.handle)?.identity(&request.operation)
    }

    /// I17: the mapping is in force, in the generation that the volume was opened under.
    fn check_handle(&self, handle: &Handle, request: &ClientRequest) -> Result<(), ClientError> {
        let mapping = self.map.mapping(handle.volume, handle.sdc).ok_or(ClientError::Fenced)?;
        if mapping.revoked || mapping.generation != handle.generation {
            return Err(ClientError::Fenced);
        }
        let is_change = is_change(&request.operation);
        if is_change && (handle.access == AccessMode::ReadOnly || mapping.access == AccessMode::ReadOnly) {
            return Err(ClientError::ReadOnly);
        }
        Ok(())
    }

    /// The bytes lie within the volume, and the group is the one that keeps them. The snapshot sequence to act under.
    fn check_place(&self, handle: &Handle, request: &ClientRequest) -> Result<SnapSeq, ClientError> {
        let volume = self.map.volume(handle.volume).filter(|volume| !volume.removing).ok_or(ClientError::Fenced)?;
        let pool = self.map.storage_pool(volume.pool).ok_or(ClientError::Retry)?;
        let (offset, length) = request.operation.range();
        let end = u64::from(offset) + u64::from(length);
        let start = request.chunk.index.checked_mul(CHUNK_BYTES).ok_or(ClientError::OutOfRange)?;
        let is_within = end <= CHUNK_BYTES && start.checked_add(end).is_some_and(|end| end <= volume.size_bytes);
        let group = PgId { pool: pool.id, index: pg_index(volume.vtree, request.chunk.index, pool.pg_count) };
        if !is_within || request.chunk.vtree != volume.vtree || request.pg != group {
            return Err(ClientError::OutOfRange);
        }
        if request.snap_seq > volume.snap_seq {
            return Err(ClientError::Retry); // the map is behind the client's
        }
        if request.snap_seq < volume.snap_seq && is_change(&request.operation) {
            return Err(ClientError::StaleSnap(volume.snap_seq)); // I18
        }
        Ok(volume.snap_seq)
    }

    /// The device of this server that leads the group.
    fn leader(&self, request: &ClientRequest) -> Result<DeviceId, ClientError> {
        let config = self.map.pg(request.pg).ok_or(ClientError::Retry)?;
        if request.epoch > config.epoch {
            return Err(ClientError::Retry); // F12: the map is behind the client's
        }
        let wrong = || {
            let newer = (config.epoch > request.epoch).then(|| Box::new(config.clone()));
            ClientError::WrongPrimary(newer)
        };
        let primary = config.primary.ok_or_else(wrong)?;
        let record = self.map.device(primary).ok_or(ClientError::Retry)?;
        if record.sds != self.settings.sds {
            return Err(wrong());
        }
        if Some(config.primary_incarnation) != self.incarnation() || self.groups.get(request.pg, primary).is_none() {
            return Err(ClientError::Retry);
        }
        Ok(primary)
    }
}

fn is_change(operation: &ClientOperation) -> bool {
    matches!(operation, ClientOperation::Write { .. } | ClientOperation::Zero { .. })
}

//! Answers of replicas on their way to clients.

use mdm_api::ids::{DeviceId, PgId};
use sds_api::client::{ClientAnswer, ClientError, ClientReply};
use sds_replica::ClientRef;

use crate::action::Action;
use crate::shard::Shard;

impl Shard {
    /// A replica has answered.
    pub(crate) fn reply(
        &mut self,
        client: ClientRef,
        result: Result<ClientAnswer, ClientError>,
        out: &mut Vec<Action>,
    ) {
        let Some(request) = self.clients.ended(client.connection, client.tag) else { return };
        match &result {
            Ok(_) => self.counters.served(request.kind, request.bytes, self.now.0.saturating_sub(request.since.0)),
            Err(error) => self.counters.refused(error),
        }
        out.push(Action::Reply { connection: client.connection, reply: ClientReply { tag: client.tag, result } });
    }

    /// A replica is gone: who waited for it tries again.
    pub(crate) fn abandon_requests(&mut self, pg: PgId, device: DeviceId, out: &mut Vec<Action>) {
        for (connection, tag) in self.clients.held_by(pg, device) {
            self.reply(ClientRef { connection, tag }, Err(ClientError::Retry), out);
        }
    }
}

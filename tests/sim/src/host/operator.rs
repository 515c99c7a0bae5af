//! The people: commands to the metadata manager by a tool that logs in.

use std::collections::BTreeMap;

use mdm_api::command::{AdminCommand, CommandAnswer};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::error::CommandError;

use crate::core::{Core, Input};
use crate::host::control::{Control, Heard};
use crate::net::NodeId;

/// What came of a command; `None`: nobody answered in time.
pub type Answer = Option<Result<CommandAnswer, CommandError>>;

/// See the module.
pub struct Operator {
    node: NodeId,
    control: Control,
    next: u64,
    /// Answers that nobody has looked at.
    pub answers: BTreeMap<u64, Answer>,
}

impl Operator {
    /// Nothing was asked yet.
    pub fn new(node: NodeId) -> Self {
        Self { node, control: Control::new(node, PeerRole::Tool, None, false, 0), next: 0, answers: BTreeMap::new() }
    }

    /// Gives a command; its answer comes under the number.
    pub fn command(&mut self, core: &mut Core, command: AdminCommand, give_up_ms: u64) -> u64 {
        self.next += 1;
        let request_id = u128::from(core.rng.word()) << 64 | u128::from(core.rng.word()) | 1;
        let node = self.node;
        core.trace.line(core.now, || format!("operator@{node}: {command:?}"));
        self.control.ask(core, self.next, Request::Admin { request_id, command }, give_up_ms);
        core.arm(self.node, self.control.deadline(core.local(self.node)));
        self.next
    }

    /// Something happened.
    pub fn input(&mut self, core: &mut Core, input: Input) {
        let mut heard = Vec::new();
        match input {
            Input::Net(conn, signal) => self.control.signal(core, conn, signal, &mut heard),
            Input::Start | Input::Wake => self.control.wake(core, &mut heard),
            Input::Disk(..) | Input::Files => {}
        }
        for heard in heard {
            let Heard::Answer(key, answer) = heard else { continue };
            let answer = answer.map(|result| match result {
                Ok(Response::Command(answer)) => Ok(answer),
                Ok(_) => Ok(CommandAnswer::Done),
                Err(error) => Err(error),
            });
            core.trace.line(core.now, || format!("operator: {answer:?}"));
            self.answers.insert(key, answer);
        }
        core.arm(self.node, self.control.deadline(core.local(self.node)));
    }
}

//! The endpoints.
//!
//! Always true: `Get` and `List` say what the system says, or what it said last, or hang up; they never say "error" for
//! "cannot tell", since dockerd would forget what it knows of the volume.

use std::sync::Arc;
use std::time::Duration;

use mdm_api::command::SystemView;
use mdm_api::model::Volume;
use serde_json::{Value, json};

use crate::core::labels::{self, MakeState, Spec};
use crate::core::machine::{Answer, Event};
use crate::core::{mounts, names, show};
use crate::create::{self, NewVolume};
use crate::tools::{self, DATA};
use crate::volumes::Volumes;
use crate::wire::{Endpoint, Named, Reply};

/// How long a volume may take to be free before it is removed.
const CLEAR_PATIENCE: Duration = Duration::from_secs(30);
/// Longest id of a mount: Docker's have 64 digits.
const ID_BYTES_MAX: usize = 256;

/// How long callers wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a mount.
    pub mount: Duration,
    /// For an unmount.
    pub unmount: Duration,
    /// For a question to the system.
    pub hold: Duration,
}

/// Answers requests.
pub struct Api {
    volumes: Arc<Volumes>,
    defaults: NewVolume,
    patience: Patience,
}

impl Api {
    /// Over the keepers.
    pub fn new(volumes: Arc<Volumes>, defaults: NewVolume, patience: Patience) -> Self {
        Self { volumes, defaults, patience }
    }

    /// Answers one request.
    pub async fn answer(&self, endpoint: Endpoint, named: Named) -> Reply {
        // Escaped and cut: whatever a stranger sends stays one line.
        let shown = |text: &str| text.chars().take(64).collect::<String>();
        tracing::debug!(?endpoint, name = ?shown(&named.name), id = ?shown(&named.id), "asked");
        let named_right = names::check(&named.name);
        if endpoint.is_named()
            && let Err(error) = named_right
        {
            return Reply::Refused(error.to_string());
        }
        match endpoint {
            Endpoint::Activate => {
                self.volumes.tell_all(&Event::EngineStarted);
                Reply::Object(json!({ "Implements": ["VolumeDriver"] }))
            }
            Endpoint::Capabilities => Reply::Object(json!({ "Capabilities": { "Scope": "global" } })),
            Endpoint::Create => self.create(&named).await,
            Endpoint::Remove => self.remove(&named.name).await,
            Endpoint::Mount => self.mount(&named).await,
            Endpoint::Unmount => self.unmount(&named).await,
            Endpoint::Release => self.release(&named).await,
            Endpoint::Path => self.path(&named.name).await,
            Endpoint::Get => self.get(&named.name).await,
            Endpoint::List => self.list().await,
        }
    }

    async fn create(&self, named: &Named) -> Reply {
        let options = named.opts.clone().unwrap_or_default();
        let system = &self.volumes.means().system;
        match create::create(system, &self.defaults, &named.name, &options).await {
            Ok(()) => Reply::done(),
            Err(why) => Reply::Refused(why),
        }
    }

    async fn remove(&self, name: &str) -> Reply {
        let cleared = self.volumes.ask(name, CLEAR_PATIENCE, |token, deadline| Event::Clear { token, deadline }).await;
        if let Err(why) = cleared {
            return Reply::Refused(why);
        }
        match create::remove(&self.volumes.means().system, name).await {
            Ok(()) => Reply::done(),
            Err(why) => Reply::Refused(why),
        }
    }

    async fn mount(&self, named: &Named) -> Reply {
        let id = match mount_id(&named.id) {
            Ok(id) => id,
            Err(refused) => return refused,
        };
        let event = |token, deadline| Event::Mount { token, id, deadline };
        match self.volumes.ask(&named.name, self.patience.mount, event).await {
            Ok(Answer::Mounted { in_data }) => {
                Reply::Object(json!({ "Mountpoint": self.given(&named.name, in_data), "Err": "" }))
            }
            Ok(Answer::Done) => Reply::Refused("the mount was answered with something else".to_owned()),
            Err(why) => Reply::Refused(why),
        }
    }

    async fn unmount(&self, named: &Named) -> Reply {
        let id = match mount_id(&named.id) {
            Ok(id) => id,
            Err(refused) => return refused,
        };
        let event = |token, deadline| Event::Unmount { token, id, deadline };
        match self.volumes.ask(&named.name, self.patience.unmount, event).await {
            Ok(_) => Reply::done(),
            Err(why) => Reply::Refused(why),
        }
    }

    /// Forgets one mount, or all, by hand.
    async fn release(&self, named: &Named) -> Reply {
        if !named.id.is_empty() {
            return self.unmount(named).await;
        }
        let event = |token, deadline| Event::Release { token, deadline };
        match self.volumes.ask(&named.name, self.patience.unmount, event).await {
            Ok(_) => Reply::done(),
            Err(why) => Reply::Refused(why),
        }
    }

    /// What a container is given of a mounted volume.
    fn given(&self, name: &str, in_data: bool) -> String {
        let point = self.volumes.means().host.mount_point(name);
        let path = if in_data { point.join(DATA) } else { point };
        path.display().to_string()
    }

    /// Where the volume is mounted on this host; empty if it is not.
    fn mountpoint(&self, name: &str, spec: &Spec) -> String {
        let point = self.volumes.means().host.mount_point(name).display().to_string();
        let mounted = tools::own_mounts().is_ok_and(|table| mounts::at(&table, &point).is_some());
        if mounted { self.given(name, spec.state == MakeState::Made) } else { String::new() }
    }

    /// The system as it is, or as it was last seen.
    async fn view(&self) -> Option<Arc<SystemView>> {
        let system = &self.volumes.means().system;
        match system.view(self.patience.hold).await {
            Ok(view) => Some(view),
            Err(error) => {
                tracing::warn!(%error, "the system does not answer");
                system.last_view()
            }
        }
    }

    async fn path(&self, name: &str) -> Reply {
        let Some(view) = self.view().await else { return Reply::HangUp };
        match view.volumes.iter().find(|volume| labels::is_named(volume, name)) {
            Some(volume) => {
                let mountpoint = self.mountpoint(name, &Spec::of(&volume.labels));
                Reply::Object(json!({ "Mountpoint": mountpoint, "Err": "" }))
            }
            None => missing(name),
        }
    }

    async fn get(&self, name: &str) -> Reply {
        let system = &self.volumes.means().system;
        let view = match system.view(self.patience.hold).await {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(volume = %name, %error, "the system does not answer");
                // A volume that was seen is shown as it was. One that was not may have been made since.
                let known = |view: &Arc<SystemView>| view.volumes.iter().any(|volume| labels::is_named(volume, name));
                match system.last_view().filter(known) {
                    Some(view) => view,
                    None => return Reply::HangUp,
                }
            }
        };
        match view.volumes.iter().find(|volume| labels::is_named(volume, name)) {
            Some(volume) => Reply::Object(json!({ "Volume": self.shown(&view, volume, name).await, "Err": "" })),
            None => missing(name),
        }
    }

    async fn shown(&self, view: &SystemView, volume: &Volume, name: &str) -> Value {
        let mountpoint = self.mountpoint(name, &Spec::of(&volume.labels));
        let point = self.volumes.means().host.mount_point(name);
        let usage = if mountpoint.is_empty() { None } else { tools::usage(&point).ok() };
        let mounts = self.volumes.count(name).await;
        json!({
            "Name": name,
            "Mountpoint": mountpoint,
            "CreatedAt": show::time(volume.created_s),
            "Status": show::status(view, volume, usage, mounts),
        })
    }

    async fn list(&self) -> Reply {
        let Some(view) = self.view().await else { return Reply::HangUp };
        let table = tools::own_mounts().unwrap_or_default();
        let mounted: std::collections::BTreeSet<String> = mounts::parse(&table).map(|mount| mount.point).collect();
        let volumes: Vec<Value> = show::named(&view)
            .map(|(name, volume)| {
                let point = self.volumes.means().host.mount_point(name).display().to_string();
                let in_data = Spec::of(&volume.labels).state == MakeState::Made;
                let mountpoint = if mounted.contains(&point) { self.given(name, in_data) } else { String::new() };
                json!({ "Name": name, "Mountpoint": mountpoint, "CreatedAt": show::time(volume.created_s) })
            })
            .collect();
        Reply::Object(json!({ "Volumes": volumes, "Err": "" }))
    }
}

fn missing(name: &str) -> Reply {
    Reply::Refused(format!("there is no volume '{name}'"))
}

fn mount_id(id: &str) -> Result<String, Reply> {
    let plain = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(id.to_owned()) } else { Err(Reply::Refused("the id of the mount is missing or not one".to_owned())) }
}

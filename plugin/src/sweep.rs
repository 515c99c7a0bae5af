//! A look at the whole host now and then: which devices there are, and which mounts any process has. What a keeper makes of
//! it is its own business.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sdc_api::LocalVolume;

use crate::tools::own_mounts;
use crate::volumes::Volumes;

/// How often.
const PERIOD: Duration = Duration::from_secs(2);

/// What was seen.
pub struct Sight {
    /// What the data client serves; nothing where it does not answer, or does not know the map yet.
    pub volumes: Option<Vec<LocalVolume>>,
    /// The mount table of this process.
    pub own_mounts: String,
    /// The mount tables of all mount namespaces.
    pub all_mounts: Vec<String>,
}

/// Looks for ever, while there is anything to look after.
pub async fn run(volumes: Arc<Volumes>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        if volumes.is_empty() {
            continue;
        }
        match look(&volumes).await {
            Ok(sight) => volumes.show(&Arc::new(sight)),
            Err(error) => tracing::warn!(%error, "the mount tables cannot be read"),
        }
    }
}

async fn look(volumes: &Volumes) -> std::io::Result<Sight> {
    let status = volumes.means().host.status().await.ok();
    let known = status.filter(|status| status.systems.iter().any(|system| system.connected));
    let tables = tokio::task::spawn_blocking(|| Ok::<_, std::io::Error>((own_mounts()?, all_mounts()?)));
    let (own_mounts, all_mounts) = tables.await.map_err(std::io::Error::other)??;
    Ok(Sight { volumes: known.map(|status| status.volumes), own_mounts, all_mounts })
}

/// One table of each mount namespace. A process that ends meanwhile has none.
fn all_mounts() -> std::io::Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut tables = Vec::new();
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        // One that is ending shows no table: another of its namespace may.
        match std::fs::read_to_string(process.path().join("mountinfo")) {
            Ok(table) if !table.is_empty() => {
                seen.insert(namespace);
                tables.push(table);
            }
            _ => {}
        }
    }
    Ok(tables)
}

//! What an engine asked of the plugin, counted from the plugin's own log.

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, ensure};

use crate::host::{Daemon, Host};

/// Calls that change something, or that an engine should not make; of the others it makes as many as it likes.
const COUNTED: [&str; 6] = ["Activate", "Create", "Remove", "Mount", "Unmount", "Path"];

/// Calls, in order.
#[derive(Debug, Default)]
pub struct Calls(Vec<Call>);

/// One call.
#[derive(Debug)]
pub struct Call {
    /// Endpoint without its prefix.
    pub endpoint: String,
    /// Volume.
    pub name: String,
    /// Mount.
    pub id: String,
}

impl Calls {
    /// How many of one endpoint.
    pub fn count(&self, endpoint: &str) -> usize {
        self.of(endpoint).count()
    }

    /// Those of one endpoint.
    pub fn of<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a Call> {
        self.0.iter().filter(move |call| call.endpoint == endpoint)
    }

    /// Exactly these, and none of the other [`COUNTED`] ones.
    pub fn demand(&self, what: &str, wanted: &[(&str, usize)]) -> anyhow::Result<()> {
        for endpoint in COUNTED {
            let expected = wanted.iter().find(|(name, _)| *name == endpoint).map_or(0, |(_, count)| *count);
            let made = self.count(endpoint);
            ensure!(made == expected, "{what}: {made} calls of {endpoint} where {expected} belong: {:?}", self.0);
        }
        Ok(())
    }
}

/// Where the log of calls ends now.
pub fn mark(host: &Host) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(host.log(Daemon::Plugin)).context("no log of the plugin")?.len())
}

/// What was asked after a mark.
pub fn since(host: &Host, mark: u64) -> anyhow::Result<Calls> {
    let mut file = std::fs::File::open(host.log(Daemon::Plugin)).context("no log of the plugin")?;
    file.seek(SeekFrom::Start(mark))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Calls(text.lines().filter_map(call).collect()))
}

/// What is asked while something is done.
pub fn during(host: &Host, body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Calls> {
    let from = mark(host)?;
    body()?;
    since(host, from)
}

/// A line such as `.. asked endpoint=Mount name="db" id="77"`.
fn call(line: &str) -> Option<Call> {
    let (_, fields) = line.split_once(" asked endpoint=")?;
    let mut words = fields.split(' ');
    let endpoint = words.next()?.to_owned();
    let field = |word: Option<&str>| Some(word?.split_once('=')?.1.trim_matches('"').to_owned());
    Some(Call { endpoint, name: field(words.next())?, id: field(words.next())? })
}

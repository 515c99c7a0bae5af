//! The system on this machine, the guest, and the data client in it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cluster::programs;
use cluster::system::System;

use crate::initrd;
use crate::machine::{Done, Machine};

/// Ordinary commands in the guest.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The data client's configuration in the guest.
const CONFIGURATION: &str = r#"name = "guest"
data_directory = "/var/lib/ashlar/sdc"
"#;

/// Everything that a step works with.
pub struct World<'a> {
    /// The servers.
    pub system: &'a System,
    /// The guest.
    pub machine: Machine,
    restarts: u32,
}

impl<'a> World<'a> {
    /// Boots the guest and makes its data client a member of the system; the client is not started yet.
    pub fn new(system: &'a System, kernel: &Path, folder: &Path) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let programs = [programs::path("sdc")?, programs::path("drv_cfg")?, own];
        let archive = folder.join("initrd");
        std::fs::write(&archive, initrd::build(kernel, &programs)?).context("cannot write the archive")?;
        let manager = system.variable("ASHLAR_MDM")?;
        let (prefix, _) = manager.rsplit_once('.').context("an address of four parts")?;
        let machine = Machine::boot(kernel, &archive, folder, &format!("{prefix}.254"))?;
        let mut world = Self { system, machine, restarts: 0 };
        let token = system.scli(&["system", "join-token"])?;
        let token = token.lines().last().context("no token")?.trim();
        let join = format!(
            "mkdir -p /etc/ashlar /var/lib/ashlar; cat >/etc/ashlar/sdc.toml <<END\n{CONFIGURATION}END\nsdc join --token {token}"
        );
        world.run(&join)?;
        Ok(world)
    }

    /// Runs a line in the guest and demands success.
    pub fn run(&mut self, line: &str) -> anyhow::Result<String> {
        self.machine.run(line, PATIENCE)
    }

    /// Runs a line in the guest, whatever comes of it.
    pub fn try_run(&mut self, line: &str) -> anyhow::Result<Done> {
        self.machine.try_run(line, PATIENCE)
    }

    /// Looks again and again until a line succeeds in the guest.
    pub fn wait(&mut self, what: &str, patience: Duration, line: &str) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            let done = self.try_run(line)?;
            if done.status == 0 {
                return Ok(started.elapsed());
            }
            if started.elapsed() > patience {
                bail!("after {} s still not so in the guest: {what}: {}", patience.as_secs(), done.text);
            }
        }
    }

    /// Starts the data client; it serves when this returns.
    pub fn start_client(&mut self) -> anyhow::Result<()> {
        self.restarts += 1;
        let log = format!("/run/sdc-{}.log", self.restarts);
        // A session of its own: a shell that ends takes nothing with it.
        self.run(&format!(
            "ASHLAR_LOG=info,sdc_client=debug,sdc_nbd=debug setsid sdc run >{log} 2>&1 & echo $! >/run/sdc.pid"
        ))?;
        self.wait("the data client answers", PATIENCE, "drv_cfg --query_guid").map(drop)
    }

    /// Sends the data client a signal and waits until it is gone.
    pub fn end_client(&mut self, signal: &str) -> anyhow::Result<()> {
        self.run(&format!("kill -{signal} $(pidof sdc)"))?;
        self.wait("the data client is gone", PATIENCE, "! pidof sdc").map(drop)
    }

    /// Makes a volume and maps it to the guest; attached when this returns. How long the mapping took to become a device.
    pub fn make_volume(&mut self, name: &str, size: &str) -> anyhow::Result<Duration> {
        self.system.scli(&["volume", "add", "--name", name, "--size", size])?;
        self.system.scli(&["volume", "map", name, "--sdc", "guest"])?;
        self.wait(&format!("{name} is attached"), PATIENCE, &format!("[ -b /dev/ashlar/{name} ]"))
    }

    /// Takes a volume from the guest and removes it; its device is gone when this returns.
    pub fn remove_volume(&mut self, name: &str) -> anyhow::Result<()> {
        self.system.scli(&["volume", "unmap", name, "--sdc", "guest"])?;
        self.wait(&format!("{name} is detached"), PATIENCE, &format!("! [ -e /dev/ashlar/{name} ]"))?;
        self.system.scli(&["volume", "remove", name]).map(drop)
    }

    /// Something that goes on in the guest until a file appears; its words are in `/run/NAME.out`, its status in
    /// `/run/NAME.status`.
    pub fn begin(&mut self, name: &str, line: &str) -> anyhow::Result<()> {
        self.run(&format!(
            "rm -f /run/{name}.*; setsid sh -c '{line} --until /run/{name}.stop; echo $? >/run/{name}.status' \
             >/run/{name}.out 2>&1 &"
        ))?;
        self.wait("the load has begun", PATIENCE, &format!("grep -q begun /run/{name}.out"))?;
        Ok(())
    }

    /// Ends it and gives its words; it must have succeeded.
    pub fn end(&mut self, name: &str, patience: Duration) -> anyhow::Result<String> {
        self.run(&format!("touch /run/{name}.stop"))?;
        self.wait(&format!("{name} has ended"), patience, &format!("[ -s /run/{name}.status ]"))?;
        let words = self.run(&format!("cat /run/{name}.out"))?;
        if self.run(&format!("cat /run/{name}.status"))?.trim() != "0" {
            bail!("{name} failed in the guest:\n{words}");
        }
        Ok(words)
    }

    /// A figure `NAME VALUE` in the last words of a load.
    pub fn figure(words: &str, name: &str) -> anyhow::Result<u64> {
        let mut found = words.lines().rev().filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.next().with_context(|| format!("no {name} in: {words}"))
    }

    /// The last words of the guest, on the standard error.
    pub fn complain(&mut self) {
        eprintln!("---- guest: console ----\n{}", self.machine.console());
        for line in ["dmesg | tail -n 20", "tail -n 25 /run/sdc-*.log", "cat /run/*.out", "ps | grep -v '\\['"] {
            match self.machine.try_run(line, Duration::from_secs(10)) {
                Ok(done) => eprintln!("---- guest: {line} ----\n{}", done.text),
                Err(error) => eprintln!("---- guest: {line}: {error:#}"),
            }
        }
    }
}

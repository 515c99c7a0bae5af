//! The daemons as containers: their images are built, and a whole system of one host runs from them.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::host::Host;
use crate::shell::{self, wait_until};
use crate::site::Site;

/// Where the repository is.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What a data client needs to make block devices of the host.
const CLIENT: [&str; 8] = [
    "--cap-add",
    "SYS_ADMIN",
    "--security-opt",
    "seccomp=unconfined",
    "--device-cgroup-rule",
    "a *:* rwm",
    "-v",
    "/dev:/dev",
];
/// Of its administrator.
const PASSWORD: &str = "a password of the tests";

/// A daemon that is brought up in a container.
struct Daemon<'a> {
    /// Of the container.
    name: &'a str,
    /// Of the program and its image.
    program: &'a str,
    /// Its configuration.
    config: String,
    /// Further options of its container.
    options: &'a [&'a str],
}

impl Daemon<'_> {
    /// Folders of its own: configuration, state.
    fn volumes(&self, host: &Host) -> anyhow::Result<[String; 2]> {
        let home = host.home().join("contained").join(self.name);
        let (etc, state) = (home.join("etc"), home.join("state"));
        std::fs::create_dir_all(&etc)?;
        std::fs::create_dir_all(&state)?;
        std::fs::write(etc.join(format!("{}.toml", self.program)), &self.config)?;
        std::fs::write(etc.join("admin-password"), PASSWORD)?;
        Ok([format!("{}:/etc/ashlar", etc.display()), format!("{}:/var/lib/ashlar", state.display())])
    }

    /// Runs its program once, for `join` and the like.
    fn once(&self, host: &Host, token: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let [etc, state] = self.volumes(host)?;
        let (image, token) = (format!("ashlar/{}", self.program), format!("ASHLAR_JOIN_TOKEN={token}"));
        let run = ["run", "--rm", "--network", "host", "-e", &token, "-v", &etc, "-v", &state, &image];
        let config = format!("/etc/ashlar/{}.toml", self.program);
        host.docker(&[&run[..], arguments, &["--config", &config]].concat())
    }

    /// Starts it.
    fn start(&self, host: &Host) -> anyhow::Result<()> {
        let [etc, state] = self.volumes(host)?;
        let image = format!("ashlar/{}", self.program);
        let run = ["run", "--detach", "--name", self.name, "--network", "host", "-v", &etc, "-v", &state];
        host.docker(&[&run[..], self.options, &[&image]].concat()).map(drop)
    }
}

/// `scli` in the container of the metadata manager, which keeps its session in its state.
fn scli(host: &Host, arguments: &[&str]) -> anyhow::Result<String> {
    host.docker(&[&["exec", "-e", "HOME=/var/lib/ashlar", "mdm", "/usr/bin/scli"], arguments].concat())
}

fn build(site: &Site, host: &Host) -> anyhow::Result<()> {
    let folder = host.home().join("images");
    let mut build = std::process::Command::new(format!("{ROOT}/tools/image/build"));
    build.arg("--programs").arg(site.program("mdm").parent().context("a program is in a folder")?);
    shell::run(build.arg("--folder").arg(&folder))?;
    for daemon in ["mdm", "sds", "sdc"] {
        let entry = format!("ENTRYPOINT [\"/usr/bin/{daemon}\"]");
        let command = format!("CMD [\"run\", \"--config\", \"/etc/ashlar/{daemon}.toml\"]");
        let tar = folder.join(format!("{daemon}.tar")).display().to_string();
        let changes = ["import", "--change", &entry, "--change", &command, "--change", "ENV PATH=/usr/bin", &tar];
        host.docker(&[&changes[..], &[&format!("ashlar/{daemon}:latest")]].concat())?;
    }
    Ok(())
}

/// A metadata manager, two data servers and a data client in containers: a volume is a block device of the host.
pub fn a_system_runs_from_its_images(site: &mut Site) -> anyhow::Result<()> {
    let host = site.hosts.get(2).context("a site has three hosts")?;
    build(site, host)?;
    let told = system(host);
    for name in ["sdc", "sds1", "sds2", "mdm"] {
        // Not there, where it failed early.
        let gone = shell::output(&mut host.docker_command(&["stop", name]))?;
        if told.is_err() && gone.status.success() {
            eprintln!("---- {name} ----\n{}", host.docker(&["logs", "--tail", "20", name]).unwrap_or_default());
        }
        let _gone = shell::output(&mut host.docker_command(&["rm", "--force", name]))?;
    }
    told
}

fn system(host: &Host) -> anyhow::Result<()> {
    let (address, state) = (&host.address, "data_directory = \"/var/lib/ashlar/data\"");
    let config = format!("name = \"mdm\"\n{state}\nlisten = \"{address}:6711\"\npeer_listen = \"{address}:9111\"\n");
    let mdm = Daemon { name: "mdm", program: "mdm", config, options: &[] };
    let create = ["create-system", "--name", "contained", "--admin-password-file", "/etc/ashlar/admin-password"];
    mdm.once(host, "", &create)?;
    mdm.start(host)?;
    let login = ["login", "--mdm", &format!("{address}:6711"), "--ca", "/var/lib/ashlar/data/authority.pem"];
    let login = [&login[..], &["--password-file", "/etc/ashlar/admin-password"]].concat();
    wait_until("one can log in", Duration::from_secs(20), || scli(host, &login).map(|_| true))?;
    let token = scli(host, &["system", "join-token"])?;
    scli(host, &["protection-domain", "add", "--name", "domain1"])?;
    scli(host, &["storage-pool", "add", "--name", "pool1", "--protection-domain", "domain1"])?;
    for (name, port) in [("sds1", 7171), ("sds2", 7172)] {
        let at = format!("{address}:{port}");
        scli(host, &["sds", "add", "--name", name, "--protection-domain", "domain1", "--address", &at])?;
        let config = format!("name = {name:?}\n{state}\nlisten = {at:?}\n");
        // io_uring, which the engine's filter of system calls keeps from containers.
        let options = &["--security-opt", "seccomp=unconfined"];
        let sds = Daemon { name, program: "sds", config, options };
        sds.once(host, &token, &["join"])?;
        sds.start(host)?;
        let file = std::fs::File::create(host.home().join("contained").join(name).join("state/device"))?;
        file.set_len(1 << 30)?;
        let path = ["--path", "/var/lib/ashlar/device"];
        scli(host, &[&["device", "add", "--sds", name, "--storage-pool", "pool1"], &path[..]].concat())?;
    }
    let sockets = "control_socket = \"/run/ashlar/sdc.sock\"\nnbd_socket = \"/run/ashlar/nbd.sock\"";
    let config = format!("name = \"contained\"\n{state}\n{sockets}\nattach = \"all\"\n");
    let sdc = Daemon { name: "sdc", program: "sdc", config, options: &CLIENT };
    sdc.once(host, &token, &["join"])?;
    sdc.start(host)?;
    scli(host, &["volume", "add", "--name", "boxed", "--storage-pool", "pool1", "--size", "64MiB"])?;
    scli(host, &["volume", "map", "boxed", "--sdc", "contained"])?;
    let device = "/dev/ashlar/boxed";
    wait_until("the volume is a block device of the host", Duration::from_secs(30), || {
        host.bash(&format!("test -b {device}")).map(|_| true)
    })?;
    host.bash(&format!("mkfs.ext4 -q {device} && mkdir -p /run/docker/boxed && mount {device} /run/docker/boxed"))?;
    let told = host.bash("echo boxed >/run/docker/boxed/f && sync && cat /run/docker/boxed/f");
    host.bash("umount /run/docker/boxed")?;
    ensure!(told? == "boxed");
    scli(host, &["volume", "unmap", "boxed", "--sdc", "contained"]).map(drop)
}

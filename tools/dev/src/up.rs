//! `dev up` and `dev down`.

use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use mdm_api::command::{AdminCommand, CommandAnswer, ObjectRef};
use mdm_api::model::{AccessMode, Limits};
use serde_json::Value;

use crate::admin::Admin;
use crate::progress::Progress;
use crate::state::{MadeVolume, Node, Role, Saved, State};
use crate::{build, network, node, status, volume};

/// What to start.
#[derive(Args)]
pub struct UpArguments {
    /// Metadata managers: 1, 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = odd)]
    mdm: usize,
    /// Data servers.
    #[arg(long, default_value_t = 3)]
    sds: usize,
    /// Devices of each data server.
    #[arg(long, default_value_t = 2)]
    devices: usize,
    /// Data clients; the volumes are mapped to the first.
    #[arg(long, default_value_t = 1)]
    sdc: usize,
    /// Size of each device; files that grow as they are written, their journals apart.
    #[arg(long, default_value = "4GiB", value_parser = size)]
    device_size: u64,
    /// A volume to make, name:size; may be repeated.
    #[arg(long, default_value = "demo:1GiB", value_parser = volume::parse)]
    volume: Vec<(String, u64)>,
    /// Do not attach and mount the volumes.
    #[arg(long)]
    no_attach: bool,
    /// Return when all is up, also on a terminal, instead of following the health.
    #[arg(long)]
    detach: bool,
    /// Give each node a network namespace of its own (as root), so that `cut` works.
    #[arg(long)]
    isolate: bool,
}

/// A group of metadata managers needs an odd number of members.
fn odd(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("choose 1, 3 or 5".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    mdm_api::verbs::parse_size(text).map_err(|error| error.to_string())
}

const POOL: &str = "pool1";
const DOMAIN: &str = "domain1";

/// `dev up`.
pub fn up(directory: &Path, arguments: &UpArguments) -> anyhow::Result<()> {
    if State::exists(directory) {
        bail!(
            "there is a system in {} already: look at it with 'dev status', end it with 'dev down --wipe', or choose another directory with --dir",
            directory.display()
        );
    }
    if arguments.sds == 0 || arguments.devices == 0 || arguments.sds > 60 || arguments.devices > 16 {
        bail!("a system has 1 to 60 data servers with 1 to 16 devices each");
    }
    if arguments.sdc == 0 || arguments.sdc > 16 {
        bail!("a system of 'dev' has 1 to 16 data clients");
    }
    let root = rustix::process::geteuid().is_root();
    if arguments.isolate && !root {
        bail!("--isolate makes network namespaces, which only root may: run it as root, or leave the option out");
    }
    build::build()?;
    let mut state = State::create(directory, plan(directory, arguments)?)?;
    let result = bring_up(&mut state, arguments);
    if let Err(error) = result {
        eprintln!("dev: the system did not come up; its logs are in {}", directory.display());
        if let Err(second) = node::stop_all(&state) {
            eprintln!("dev: {second:#}");
        }
        return Err(error.context("end it with 'dev down --wipe'"));
    }
    if !arguments.detach && std::io::stdout().is_terminal() {
        follow(&state)?;
    }
    Ok(())
}

/// Follows the health until the user leaves; the system goes on.
fn follow(state: &State) -> anyhow::Result<()> {
    println!("Following the health; leave with Ctrl-C, the system goes on.");
    let mut last = None;
    loop {
        let healthy = status::look(state).healthy(state);
        if last != Some(healthy) {
            println!("{}", if healthy { "all healthy" } else { "not healthy: see 'cargo dev status'" });
            last = Some(healthy);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Where sockets go: the directory itself if names stay short enough, else a folder of this user's under /tmp.
fn sockets(directory: &Path) -> anyhow::Result<PathBuf> {
    let inside = directory.join("run");
    if inside.as_os_str().len() < 80 {
        return Ok(inside);
    }
    let mut random = [0; 6];
    getrandom::fill(&mut random)?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(std::env::temp_dir().join(format!("ashlar-{name}")))
}

/// A port that is free now; two are never given twice because all are held until all are chosen.
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    fn next(&mut self) -> anyhow::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        self.held.push(listener);
        Ok(port)
    }
}

/// Decides names, addresses and places, and writes the configurations.
fn plan(directory: &Path, arguments: &UpArguments) -> anyhow::Result<Saved> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}: choose another directory with --dir", directory.display()))?;
    let sockets = sockets(directory)?;
    std::fs::create_dir_all(&sockets).with_context(|| format!("cannot make {}", sockets.display()))?;
    let network = arguments.isolate.then(network::create).transpose()?;
    let mut saved = Saved { sockets: sockets.clone(), nodes: vec![], volumes: vec![], ready: false, network };
    let roles = std::iter::repeat_n(Role::Mdm, arguments.mdm)
        .chain(std::iter::repeat_n(Role::Sds, arguments.sds))
        .chain(std::iter::repeat_n(Role::Sdc, arguments.sdc));
    let mut ports = Ports { held: vec![] };
    let mut counts = [0; 3];
    for (index, role) in roles.enumerate() {
        counts[role as usize] += 1;
        let name = format!("{}{}", role.program(), counts[role as usize]);
        let home = directory.join(&name);
        std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let (namespace, ip) = match &saved.network {
            Some(network) => {
                let (namespace, ip) = network::add_node(network, index + 1)?;
                (Some(namespace), Some(ip))
            }
            None => (None, None),
        };
        let mut address = |fixed: u16| match &ip {
            Some(ip) => Ok::<_, anyhow::Error>(format!("{ip}:{fixed}")),
            None => Ok(format!("127.0.0.1:{}", ports.next()?)),
        };
        let (address, text) = match role {
            Role::Mdm => {
                let (control, peer, metrics) = (address(6611)?, address(9011)?, address(9611)?);
                let text = format!("listen = {control:?}\npeer_listen = {peer:?}\nmetrics_listen = {metrics:?}\n");
                (control, text)
            }
            Role::Sds => {
                let (data, metrics) = (address(7072)?, address(9612)?);
                (data.clone(), format!("listen = {data:?}\nmetrics_listen = {metrics:?}\n"))
            }
            Role::Sdc => {
                let metrics = address(9613)?;
                let control = sockets.join(format!("{name}.sock"));
                let nbd = sockets.join(format!("{name}-nbd.sock"));
                let attach = if arguments.no_attach || !volume::can_attach() { "none" } else { "all" };
                let text = format!(
                    "control_socket = {control:?}\nnbd_socket = {nbd:?}\nmetrics_listen = {metrics:?}\nattach = {attach:?}\n"
                );
                (control.display().to_string(), text)
            }
        };
        let config = directory.join(format!("{name}.toml"));
        let text = format!("name = {name:?}\ndata_directory = {:?}\n{text}", home.display().to_string());
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let log = directory.join(format!("{name}.log"));
        saved.nodes.push(Node { name, role, process: None, address, config, log, namespace, ip });
    }
    Ok(saved)
}

fn bring_up(state: &mut State, arguments: &UpArguments) -> anyhow::Result<()> {
    let steps =
        arguments.mdm + arguments.sds * (1 + arguments.devices) + arguments.sdc + 2 + 2 * arguments.volume.len();
    let progress = Progress::new(steps as u64);
    let names = |state: &State, role| -> Vec<String> {
        state.saved.nodes.iter().filter(|n| n.role == role).map(|n| n.name.clone()).collect()
    };
    let mdms = names(state, Role::Mdm);
    progress.step("creating the system");
    let token = create_system(state, &mdms[0])?;
    node::spawn(state, &mdms[0])?;
    let admin = wait_admin(state, &mdms[0])?;
    for name in &mdms[1..] {
        progress.step(format!("{name} joins"));
        node::run(state.node(name)?, &["join", "--token", &token])?;
        node::spawn(state, name)?;
    }
    let count = mdms.len();
    admin.wait_until("all metadata managers vote", Duration::from_secs(60), |view| {
        view.cluster.members.iter().filter(|m| m.mdm.voter && m.connected).count() == count
    })?;
    progress.step("making a protection domain and a storage pool");
    admin.change(AdminCommand::AddProtectionDomain { name: DOMAIN.to_owned() })?;
    let protection_domain = Some(ObjectRef::from(DOMAIN));
    let pool =
        AdminCommand::AddStoragePool { name: POOL.to_owned(), protection_domain, copies: 2, min_isr: 0, pg_count: 0 };
    admin.change(pool)?;
    for name in names(state, Role::Sds) {
        add_sds(state, &admin, &progress, &token, &name, arguments)?;
    }
    for name in names(state, Role::Sdc) {
        progress.step(format!("{name} joins"));
        node::run(state.node(&name)?, &["join", "--token", &token])?;
        node::spawn(state, &name)?;
    }
    let view = admin.wait_until("the data clients are connected", Duration::from_secs(30), |view| {
        view.sdcs.iter().filter(|c| c.connected).count() == arguments.sdc
    })?;
    let first =
        view.sdcs.iter().find(|c| c.sdc.name.as_deref() == Some("sdc1")).context("no data client is called sdc1")?;
    let sdc = ObjectRef(first.sdc.id.to_string());
    let mut made = Vec::new();
    for (name, size_bytes) in &arguments.volume {
        made.push(make_volume(state, &admin, &progress, name, *size_bytes, &sdc, arguments)?);
    }
    progress.step("waiting for all copies");
    admin.wait_until("all placement groups have their copies", Duration::from_secs(60), |view| {
        view.storage_pools.iter().all(|p| p.degraded_pgs == 0 && p.dark_pgs == 0)
    })?;
    keep_session(state)?;
    state.saved.ready = true;
    state.save()?;
    report(state, &made, progress.finish());
    Ok(())
}

fn create_system(state: &State, first: &str) -> anyhow::Result<String> {
    let mut random = [0; 12];
    getrandom::fill(&mut random)?;
    let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = state.password_file();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(&path).context("cannot keep the password")?;
    writeln!(file, "{password}")?;
    let path = path.display().to_string();
    let arguments = ["create-system", "--name", "dev", "--admin-password-file", &path, "--output", "json"];
    let answer = node::run(state.node(first)?, &arguments)?;
    let answer: Value = serde_json::from_str(&answer).context("mdm create-system did not answer in JSON")?;
    Ok(answer["join_token"].as_str().context("mdm create-system gave no join token")?.to_owned())
}

/// Logs in as soon as the first MDM leads.
fn wait_admin(state: &State, first: &str) -> anyhow::Result<Admin> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Admin::login(state, Duration::from_secs(5)) {
            Ok(admin) => return Ok(admin),
            Err(error) => {
                let node = state.node(first)?;
                if Instant::now() > deadline || node::life(node) == node::Life::Dead {
                    return Err(error
                        .context(format!("{first} does not lead; its last words:\n{}", node::last_words(&node.log))));
                }
            }
        }
    }
}

fn add_sds(
    state: &mut State,
    admin: &Admin,
    progress: &Progress,
    token: &str,
    name: &str,
    arguments: &UpArguments,
) -> anyhow::Result<()> {
    progress.step(format!("{name} joins"));
    let addresses = vec![state.node(name)?.address.clone()];
    let protection_domain = Some(ObjectRef::from(DOMAIN));
    admin.change(AdminCommand::AddSds { name: name.to_owned(), protection_domain, fault_set: None, addresses })?;
    node::run(state.node(name)?, &["join", "--token", token])?;
    node::spawn(state, name)?;
    let what = format!("{name} is connected");
    admin.wait_until(&what, Duration::from_secs(30), |view| view.sds.iter().any(|s| s.name == name && s.connected))?;
    for index in 1..=arguments.devices {
        progress.step(format!("formatting device {index} of {name}"));
        let path = state.directory.join(name).join(format!("device{index}"));
        let file = std::fs::OpenOptions::new().create_new(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(arguments.device_size).with_context(|| format!("cannot size {}", path.display()))?;
        admin.change(AdminCommand::AddDevice {
            name: Some(format!("{name}-device{index}")),
            sds: ObjectRef::from(name),
            storage_pool: Some(ObjectRef::from(POOL)),
            path: path.display().to_string(),
        })?;
    }
    Ok(())
}

fn make_volume(
    state: &mut State,
    admin: &Admin,
    progress: &Progress,
    name: &str,
    size_bytes: u64,
    sdc: &ObjectRef,
    arguments: &UpArguments,
) -> anyhow::Result<(String, String, Option<PathBuf>)> {
    progress.step(format!("making volume {name}"));
    let storage_pool = Some(ObjectRef::from(POOL));
    let answer = admin.change(AdminCommand::AddVolume {
        name: name.to_owned(),
        storage_pool,
        size_bytes,
        labels: Default::default(),
    })?;
    let CommandAnswer::Volume { .. } = answer else { bail!("unexpected answer: {answer:?}") };
    let limits = Limits::default();
    let (volume_ref, access) = (ObjectRef::from(name), AccessMode::ReadWrite);
    admin.change(AdminCommand::MapVolume {
        volume: volume_ref,
        sdc: sdc.clone(),
        access,
        limits,
        allow_multiple: false,
    })?;
    state.saved.volumes.push(MadeVolume { name: name.to_owned(), mount: None });
    state.save()?;
    let attach = !arguments.no_attach && volume::can_attach();
    progress.step(if attach { format!("attaching and mounting {name}") } else { format!("serving {name}") });
    let socket = PathBuf::from(&state.node("sdc1")?.address);
    let served = volume::wait_served(&socket, name, attach, Duration::from_secs(60))?;
    let mut mounted = None;
    if attach && let Some(device) = &served.device {
        mounted = Some(volume::mount(state, name, device)?);
        if let Some(made) = state.saved.volumes.iter_mut().find(|v| v.name == name) {
            made.mount.clone_from(&mounted);
        }
        state.save()?;
    }
    Ok((name.to_owned(), served.nbd_uri, mounted))
}

/// Logs `scli` in, so that `dev env` is all it needs.
fn keep_session(state: &State) -> anyhow::Result<()> {
    let output = std::process::Command::new(node::program("scli")?)
        .arg("login")
        .arg("--mdm")
        .arg(state.mdm_addresses().join(","))
        .arg("--ca")
        .arg(state.authority_file())
        .arg("--session")
        .arg(state.session_file())
        .arg("--password-file")
        .arg(state.password_file())
        .output()
        .context("cannot run scli")?;
    if !output.status.success() {
        bail!("scli login: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn report(state: &State, made: &[(String, String, Option<PathBuf>)], seconds: f64) {
    println!(
        "A system of {} nodes is up after {seconds:.1} s, in {}.",
        state.saved.nodes.len(),
        state.directory.display()
    );
    for (name, uri, mounted) in made {
        match mounted {
            Some(path) => println!("Volume {name} is mounted on {} (and served at {uri}).", path.display()),
            None => println!("Volume {name} is served at {uri}"),
        }
    }
    println!("\nTry next:");
    println!("  cargo dev status                  nodes, volumes and health");
    println!("  cargo dev kill sds1               then watch the volume go on; cargo dev start sds1");
    println!("  eval \"$(cargo dev env)\"           then: scli volume list; scli --query_all");
    if let Some((_, uri, None)) = made.first() {
        println!("  nbdinfo '{uri}'    (from libnbd-bin; as root with nbdfuse the volume is mounted by itself)");
    }
    println!("  cargo dev down --wipe             end it and remove everything");
}

/// `dev down`.
pub fn down(directory: &Path, wipe: bool) -> anyhow::Result<()> {
    if State::exists(directory) {
        let state = State::lock(directory)?;
        volume::release_all(&state);
        node::stop_all(&state)?;
        network::remove(&state);
        if state.saved.sockets != state.directory.join("run") {
            remove(&state.saved.sockets)?;
        }
        if !wipe {
            let mut state = state;
            state.saved.network = None;
            for node in &mut state.saved.nodes {
                node.process = None;
            }
            state.save()?;
            println!(
                "Ended. Its data is in {}; 'dev start all' starts it again, 'dev down --wipe' removes it.",
                directory.display()
            );
        }
    } else if !wipe {
        bail!("there is no system in {}", directory.display());
    }
    if wipe {
        remove(directory)?;
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

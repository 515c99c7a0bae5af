//! Bad input: one clear line, the right exit code, and nothing is changed; nonsense on a port costs one connection.

#![allow(clippy::unwrap_used)] // a helper that fails fails its test

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cluster::gaps::Writer;
use cluster::hostile::{self, Port};
use cluster::system::{Options, System, with_system};
use cluster::{programs, shell};
use mdm_api::client::pki::{self, Authority, Identity};
use mdm_api::client::{ConnectError, Connector};
use mdm_api::control::PeerRole;
use mdm_api::frame::{self, FRONT_BYTES, FrameKind, Front};
use mdm_api::ids::{KeyId, MdmId, ProcessIncarnation, SdcId, SdsId, SystemId};
use sds_api::open::{OPEN_BOUNDS, OPEN_VERSION, OpenMessage, PeerLink};

/// Nobody listens there: a port below 1024 that no service of a test machine has.
const NOBODY: &str = "127.0.0.1:9";

/// A connection that will never be greeted is given up within so much.
const PROMPT: Duration = Duration::from_secs(5);

/// The refusal is one line that names the thing, and the exit code is the one given.
fn refused(what: &str, output: &Output, code: i32, names: &str) {
    let words = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(lines.len(), 1, "{what}: one line is expected:\n{words}");
    assert_eq!(output.status.code(), Some(code), "{what}: {words}");
    assert!(output.stdout.is_empty(), "{what} prints {}", String::from_utf8_lossy(&output.stdout));
    assert!(words.to_lowercase().contains(&names.to_lowercase()), "{what} does not name {names}: {words}");
    let (_, remedy) = words.trim_end().rsplit_once(": ").unwrap_or_default();
    assert!(remedy.len() > 4, "{what} does not say what to do: {words}");
}

/// Everything that a refused command must leave as it is.
fn everything(system: &System) -> String {
    let nouns = ["mdm", "protection-domain", "fault-set", "storage-pool", "sds", "device", "sdc", "volume"];
    let names = nouns.map(|noun| {
        let text = system.scli(&[noun, "list", "--output", "json"]).unwrap();
        let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows = rows.as_array().unwrap().iter();
        let stable = |row: &serde_json::Value| format!("{} {} {}", row["id"], row["name"], row["size_bytes"]);
        rows.map(stable).collect::<Vec<_>>().join("\n")
    });
    names.join("\n\n")
}

fn small() -> Options {
    Options { mdm: 1, sds: 2, devices: 1, device_size: "512MiB", volumes: vec!["demo:64MiB"], ..Options::default() }
}

#[test]
fn each_wrong_command_gets_one_line_that_says_what_to_do_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("foreign");
    with_system(&small(), |system| {
        system.kill("all")?;
        let device = system.directory().join("sds1").join("device1").display().to_string();
        shell::succeed("cp", &["--sparse=always", &device, &foreign.display().to_string()]).map(drop)
    })
    .unwrap();
    with_system(&small(), |system| {
        let before = everything(system);
        modern(system);
        classic(system);
        devices(system, &foreign);
        nobody_answers(system, folder.path());
        assert_eq!(everything(system), before);
        Ok(())
    })
    .unwrap();
}

fn modern(system: &System) {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["volume", "show", "nothing"], 1, "nothing"),
        (&["volume", "map", "nothing", "--sdc", "sdc1"], 1, "volume"),
        (&["volume", "map", "demo", "--sdc", "nobody"], 1, "sdc"),
        (&["volume", "remove", "nothing"], 1, "volume"),
        (&["volume", "remove", "demo"], 1, "mapped"),
        (&["volume", "add", "--name", "demo", "--size", "1GiB"], 1, "name"),
        (&["volume", "add", "--name", "zero", "--size", "0GiB"], 1, "size"),
        (&["volume", "add", "--name", "large", "--size", "900TiB"], 1, "pool"),
        (&["volume", "add", "--name", "odd", "--size", "much"], 1, "much"),
        (&["volume", "resize", "demo", "--size", "1MiB"], 1, "increased"),
        (&["volume", "add", "--name", "a name with blanks", "--size", "1GiB"], 1, "name"),
        (&["storage-pool", "add", "--name", "pool1"], 1, "name"),
        (&["sds", "show", "sds9"], 1, "sds9"),
        (&["volume", "list", "--sizes"], 2, "--sizes"),
        (&["volume", "add", "--name", "incomplete"], 2, "--size"),
        (&["volumes", "list"], 2, "volumes"),
    ];
    for (arguments, code, names) in cases {
        refused(&arguments.join(" "), &system.try_scli(arguments).unwrap(), *code, names);
    }
}

fn classic(system: &System) {
    let add = |name, size| ["--add_volume", "--storage_pool_name", "pool1", "--size_gb", size, "--volume_name", name];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--query_volume", "--volume_name", "nothing"], 7, "volume"),
        (&["--remove_volume", "--volume_name", "nothing", "--i_am_sure"], 7, "volume"),
        (&["--map_volume_to_sdc", "--volume_name", "nothing", "--sdc_name", "sdc1"], 7, "volume"),
        (&["--map_volume_to_sdc", "--volume_name", "demo", "--sdc_name", "nobody"], 7, "sdc"),
        (&["--map_volume_to_sdc", "--volume_name", "demo", "--sdc_name", "sdc1"], 7, "mapped"),
        (&add("demo", "8"), 7, "name"),
        (&add("zero", "0"), 7, "size"),
        (&add("large", "900000"), 7, "pool"),
        (&["--query_all_volumes", "--sizes"], 2, "--sizes"),
    ];
    for (arguments, code, names) in cases {
        refused(&arguments.join(" "), &system.try_scli(arguments).unwrap(), *code, names);
    }
}

fn devices(system: &System, foreign: &Path) {
    let add = |path: &Path| {
        let path = path.display().to_string();
        let line = ["device", "add", "--sds", "sds1", "--storage-pool", "pool1", "--path", &path];
        system.try_scli(&line).unwrap()
    };
    refused("a device of another system", &add(foreign), 1, "foreign");
    refused("a device in use", &add(&system.directory().join("sds1").join("device1")), 1, "device1");
    refused("a device of another server", &add(&system.directory().join("sds2").join("device1")), 1, "device1");
    refused("no device", &add(Path::new("/dev/nothing-of-this-name")), 1, "nothing-of-this-name");
    refused("a folder", &add(system.directory()), 1, "system");
}

fn nobody_answers(system: &System, folder: &Path) {
    let mut line = system.scli_command(&["volume", "list", "--mdm", NOBODY]).unwrap();
    refused("an address that nobody answers", &shell::output(&mut line).unwrap(), 1, NOBODY);
    let mut line = system.scli_command(&["--query_all_volumes", "--mdm_ip", NOBODY]).unwrap();
    refused("an address that nobody answers, classic", &shell::output(&mut line).unwrap(), 1, NOBODY);
    let again = shell::output(&mut system.dev_command(&["up"]).unwrap()).unwrap();
    refused("a second system in one directory", &again, 1, "system");
    let unknown = shell::output(&mut system.dev_command(&["kill", "sds9"]).unwrap()).unwrap();
    refused("a node that there is not", &unknown, 1, "sds9");
    let flag = shell::output(&mut system.dev_command(&["up", "--fast"]).unwrap()).unwrap();
    refused("a wrong flag of dev", &flag, 2, "--fast");
    without_rights(folder);
}

/// A directory that the daemon may not use. As root there is none but those that the kernel itself keeps.
fn without_rights(folder: &Path) {
    let closed = folder.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let data = closed.join("data");
    let common = format!("name = \"x\"\ndata_directory = {:?}\n", data.display().to_string());
    let listen = "listen = \"127.0.0.1:1\"\n";
    let sockets = format!("control_socket = {0:?}\nnbd_socket = {0:?}\n", closed.join("s").display().to_string());
    let daemons = [
        ("mdm", format!("{common}{listen}peer_listen = \"127.0.0.1:2\"\n")),
        ("sds", format!("{common}{listen}")),
        ("sdc", format!("{common}{sockets}")),
    ];
    for (program, text) in daemons {
        let config = folder.join(format!("{program}.toml"));
        std::fs::write(&config, text).unwrap();
        // A copy, because the build's own folder may be closed to others.
        let copy = folder.join(program);
        std::fs::copy(programs::path(program).unwrap(), &copy).unwrap();
        let mut command = Command::new(&copy);
        command.arg("run").arg("--config").arg(&config).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let name = data.display().to_string();
        refused(&format!("{program} without rights"), &shell::output(&mut command).unwrap(), 1, &name);
    }
}

#[test]
fn nonsense_on_any_port_costs_one_connection_and_strangers_are_told_why() {
    with_system(&Options { mdm: 3, ..small() }, |system| {
        system.wait_healthy(Duration::from_secs(60))?;
        let before = system.processes()?;
        let writer = Writer::start(&system.nbd("demo")?)?;
        let status = system.status()?;
        let is_client = |node: &&serde_json::Value| node["role"] == "sdc";
        let client = status["nodes"].as_array().unwrap().iter().find(is_client).unwrap();
        let client = Port::Unix(client["address"].as_str().unwrap().into());
        let mut count = 0;
        for (name, pid) in &before {
            let mut ports = hostile::ports(*pid)?;
            if name == "sdc1" {
                ports.extend([client.clone(), Port::Unix(system.nbd("demo")?.socket)]);
            }
            assert!(ports.len() >= 2, "{name} listens on {ports:?}");
            for port in ports {
                for (what, bytes) in hostile::nonsense() {
                    let started = Instant::now();
                    hostile::send(&port, &bytes).unwrap_or_else(|error| panic!("{name} {port:?}, {what}: {error:#}"));
                    assert!(started.elapsed() < PROMPT, "{name} {port:?}, {what}: took {:?}", started.elapsed());
                    count += 1;
                }
            }
        }
        println!("{count} connections of nonsense");
        strangers(system);
        servers_want_proof(system, &before);
        assert!(writer.finish()? > 0);
        assert_eq!(system.processes()?, before, "a daemon has ended");
        system.wait_healthy(Duration::from_secs(60)).map(drop)
    })
    .unwrap();
}

/// The certificate that a data client got when it joined.
fn identity_of_client(system: &System) -> Identity {
    let path = system.directory().join("sdc1").join("identity.json");
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    Identity {
        certificate_pem: text("certificate_pem"),
        key_pem: text("key_pem"),
        authority_pem: text("authority_pem"),
    }
}

/// Who comes to a metadata manager with the wrong papers is told so.
fn strangers(system: &System) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let own = identity_of_client(system);
    let status = system.status().unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    let mdm = nodes.iter().find(|node| node["role"] == "mdm").unwrap();
    let address = mdm["address"].as_str().unwrap();
    let (_, system_id) = system.variable("ASHLAR_SESSION").map(session_system).unwrap();
    let foreign_authority = Authority::create(SystemId(77)).unwrap();
    let (key_pem, request) = pki::new_request().unwrap();
    let certificate_pem = foreign_authority.sign(SystemId(77), PeerRole::Mdm(MdmId(1)), &request).unwrap();
    let foreign = Identity { certificate_pem, key_pem, authority_pem: own.authority_pem.clone() };
    let connect = |identity: Option<&Identity>, role, system| {
        let tls = pki::client_config(&own.authority_pem, identity).unwrap();
        runtime.block_on(Connector::new(tls, role, system).connect(address)).map(drop)
    };
    let told = |what: &str, result: Result<(), ConnectError>, names: &str| match result {
        Err(ConnectError::Refused { error, .. }) => {
            let words = error.to_string();
            assert!(words.contains(names) && !words.contains('\n'), "{what}: {words}");
        }
        other => panic!("{what}: {other:?}"),
    };
    let mdm_role = PeerRole::Mdm(MdmId(1));
    told("no certificate", connect(None, mdm_role, Some(system_id)), "certificate");
    told("a client that claims to be a manager", connect(Some(&own), mdm_role, Some(system_id)), "certificate");
    told("a client that claims to be a server", connect(Some(&own), PeerRole::Sds(SdsId(1)), None), "certificate");
    told("another system", connect(None, PeerRole::Tool, Some(SystemId(77))), "system");
    // A certificate of another authority does not survive the handshake of TLS itself.
    assert!(matches!(connect(Some(&foreign), mdm_role, None), Err(ConnectError::Io { .. })), "a foreign certificate");
    assert!(connect(None, PeerRole::Tool, Some(system_id)).is_ok(), "and a tool is let in");
}

/// The system's id, from the session file that `dev` keeps.
fn session_system(path: &str) -> (String, SystemId) {
    let text = std::fs::read_to_string(path).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    (text, serde_json::from_value(value["system"].clone()).unwrap())
}

/// A data server believes nobody without proof: neither another server nor a client.
fn servers_want_proof(system: &System, processes: &[(String, u32)]) {
    let (_, system_id) = system.variable("ASHLAR_SESSION").map(session_system).unwrap();
    let text = greet_server(system, processes, &peer_hello(system_id, OPEN_VERSION));
    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
}

/// F33: one of another version is not half understood. It hears which versions are spoken here, and nobody else notices.
#[test]
fn programs_of_another_version_are_told_so() {
    with_system(&small(), |system| {
        system.wait_healthy(Duration::from_secs(60))?;
        let (before, text) = (system.processes()?, system.variable("ASHLAR_SESSION")?);
        let (_, id) = session_system(text);
        let version = OPEN_VERSION + 1;
        let client = OpenMessage::ClientHello { version, system: id, sdc: SdcId(1), nonce: Default::default() };
        for hello in [peer_hello(id, version), client] {
            let told = greet_server(system, &before, &hello);
            assert!(told.contains(&format!("version {version} ")) && !told.contains('\n'), "{told}");
            assert!(told.contains(&format!("to {OPEN_VERSION})")), "{told}");
        }
        assert_eq!(system.processes()?, before, "a daemon has ended");
        system.wait_healthy(Duration::from_secs(60)).map(drop)
    })
    .unwrap();
}

/// Greets a data server: in which words it refuses.
fn greet_server(system: &System, processes: &[(String, u32)], hello: &OpenMessage) -> String {
    let status = system.status().unwrap();
    let (_, pid) = processes.iter().find(|(name, _)| name == "sds1").unwrap();
    let node = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "sds1").unwrap();
    let address = node["address"].as_str().unwrap().parse().unwrap();
    assert!(hostile::ports(*pid).unwrap().contains(&Port::Tcp(address)));
    let (_, system_id) = system.variable("ASHLAR_SESSION").map(session_system).unwrap();
    let stream = std::net::TcpStream::connect::<std::net::SocketAddr>(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(matches!(receive(&stream), Some(OpenMessage::Challenge { system, .. }) if system == system_id));
    (&stream).write_all(&frame::encode(FrameKind::DataOpen, &hello.encode())).unwrap();
    let Some(OpenMessage::Refused { text }) = receive(&stream) else { panic!("{hello:?} is not refused") };
    assert!(receive(&stream).is_none(), "the connection ends");
    text
}

/// The next message of an opening; `None` at the end.
fn receive(mut stream: &std::net::TcpStream) -> Option<OpenMessage> {
    let mut front = [0; FRONT_BYTES];
    stream.read_exact(&mut front).ok()?;
    let front = Front::decode(&front, OPEN_BOUNDS).unwrap();
    assert_eq!(front.kind, FrameKind::DataOpen);
    let mut header = vec![0; front.header_bytes];
    stream.read_exact(&mut header).unwrap();
    front.check_header(&header).unwrap();
    Some(OpenMessage::decode(&header).unwrap())
}

/// Another server's greeting, with a proof that proves nothing.
fn peer_hello(system: SystemId, version: u16) -> OpenMessage {
    OpenMessage::PeerHello {
        version,
        system,
        sds: SdsId(1),
        incarnation: ProcessIncarnation(1),
        link: PeerLink::Bulk,
        nonce: Default::default(),
        key: KeyId(0),
        proof: [0; 32],
    }
}

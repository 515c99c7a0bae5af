//! The fallback attach on a real kernel: needs root, /dev/fuse and loop devices; skipped, with a word, without them.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../examples/serve_file.rs"]
mod serve_file;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{have, run, succeed};
use sdc_nbd::attach::links::Links;
use sdc_nbd::attach::state::Mechanism;
use sdc_nbd::attach::{AttachConfig, AttachError, Attacher, VolumeSpec};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Set to a directory: this test program is to serve the image in it.
const SERVE: &str = "ASHLAR_TEST_SERVE";

/// Not a test of its own: what the others start and kill.
#[test]
fn a_server_in_a_process_of_its_own() {
    if let Some(directory) = std::env::var_os(SERVE) {
        let directory = PathBuf::from(directory);
        serve_file::serve(&directory.join("image"), &directory.join("nbd.sock")).unwrap();
    }
}

struct Bench {
    directory: TempDir,
    server: Option<Child>,
    volume: VolumeSpec,
}

impl Bench {
    fn new(size_bytes: u64) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        if !root || !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: needs root, /dev/fuse and /dev/loop-control");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::File::create(directory.path().join("image")).unwrap().set_len(size_bytes).unwrap();
        let volume = VolumeSpec {
            name: "v1".to_owned(),
            id: 0x11,
            generation: 1,
            export: "disk".to_owned(),
            size_bytes,
            read_only: false,
        };
        let mut bench = Self { directory, server: None, volume };
        bench.start();
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_server_in_a_process_of_its_own", "--nocapture"]).stdin(Stdio::null());
        command.stdout(Stdio::null()).env(SERVE, self.directory.path());
        self.server = Some(command.spawn().unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(self.path("nbd.sock")).is_err() {
            assert!(std::time::Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// As a daemon does at its start.
    fn attacher(&self) -> Attacher {
        let config = AttachConfig {
            run_dir: self.path("run"),
            socket: self.path("nbd.sock"),
            holder: vec![OsString::from(env!("CARGO_BIN_EXE_sdc-hold"))],
            holder_threads: 16,
            nbd_connections: 2,
            links: Links { by_name: self.path("ashlar"), by_id: self.path("by-id"), system: 0xabc },
        };
        Attacher::with_mechanism(config, Mechanism::FuseLoop).unwrap()
    }

    fn holder(&self) -> u32 {
        let record = fs::read_to_string(self.path("run/v1.device")).unwrap();
        record.lines().find_map(|line| line.strip_prefix("pid ")).unwrap().parse().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A failed test leaves things behind, which would hang as soon as the server is gone.
        if self.path("mnt").exists() {
            let _ = Command::new("umount").arg("-ql").arg(self.path("mnt")).status();
        }
        if let Ok(record) = fs::read_to_string(self.path("run/v1.device")) {
            let device = record.lines().find_map(|line| line.strip_prefix("device ")).unwrap_or_default();
            let _ = Command::new("umount").arg("-qf").arg(self.path("run/files/v1")).status();
            let _ = Command::new("losetup").args(["-d", device]).status();
            let _ = Command::new("umount").arg("-ql").arg(self.path("run/files/v1")).status();
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn no_loop_below(directory: &Path) {
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) {
            assert!(!Path::new(file.trim()).starts_with(directory), "left behind: {file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_made_used_grown_and_removed_and_nothing_stays() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let attacher = bench.attacher();
    let attached = attacher.attach(bench.volume.clone()).await.unwrap();
    assert_eq!(attacher.attach(bench.volume.clone()).await.unwrap(), attached, "twice is once");
    let device = attached.device.to_str().unwrap().to_owned();
    assert_eq!(fs::read_link(bench.path("ashlar/v1")).unwrap(), attached.device);
    assert!(bench.path("by-id/emc-vol-0000000000000abc-0000000000000011").exists());
    let loop_directory = format!("/sys/block/{}", device.strip_prefix("/dev/").unwrap());
    let read = |name: &str| fs::read_to_string(format!("{loop_directory}/{name}")).unwrap().trim().to_owned();
    assert_eq!((read("loop/dio"), read("queue/logical_block_size")), ("1".to_owned(), "4096".to_owned()));

    succeed("mkfs.ext4", &["-q", "-E", "nodiscard", &device]).await;
    let mount = bench.path("mnt");
    fs::create_dir(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    succeed("mount", &[&device, mount]).await;
    fs::write(format!("{mount}/file"), vec![9; 5 << 20]).unwrap();
    let busy = attacher.detach("v1", false).await.unwrap_err();
    assert!(matches!(&busy, AttachError::Busy { users, .. } if users.contains(mount)), "{busy}");
    assert!(bench.path("ashlar/v1").exists(), "a refused detach changes nothing");

    let image = fs::File::options().write(true).open(bench.path("image")).unwrap();
    image.set_len(128 * MIB).unwrap();
    attacher.resize("v1", 128 * MIB).await.unwrap();
    assert_eq!(read("size"), (128 * MIB / 512).to_string());
    // ext4 grows while mounted only for a holder of CAP_SYS_RESOURCE, which a container's root may lack.
    let grows = run("resize2fs", &[&device]).await;
    let refused = String::from_utf8_lossy(&grows.stderr).contains("Permission denied");
    assert!(grows.status.success() || refused, "{}", String::from_utf8_lossy(&grows.stderr));
    let more = if refused { 30 << 20 } else { 70 << 20 };
    fs::write(format!("{mount}/more"), vec![7; more]).unwrap();
    fs::remove_file(format!("{mount}/more")).unwrap();
    succeed("sync", &[]).await;
    let before = std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap());
    succeed("fstrim", &[mount]).await;
    let after = std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap());
    assert!(after + more as u64 / 1024 < before, "discard gives space back: {before} -> {after}");
    assert_eq!(fs::read(format!("{mount}/file")).unwrap(), vec![9; 5 << 20]);
    succeed("umount", &[mount]).await;
    succeed("e2fsck", &["-fn", &device]).await;

    let open = fs::File::open(&device).unwrap();
    let mut tail = Command::new("sleep").arg("60").stdin(Stdio::from(open)).spawn().unwrap();
    let busy = attacher.detach("v1", false).await.unwrap_err();
    assert!(matches!(&busy, AttachError::Busy { users, .. } if users.contains("(sleep)")), "{busy}");
    tail.kill().unwrap();
    tail.wait().unwrap();
    let holder = bench.holder();
    attacher.detach("v1", false).await.unwrap();
    assert!(matches!(attacher.detach("v1", false).await, Err(AttachError::NotAttached(_))));
    assert!(!bench.path("ashlar/v1").exists());
    assert_eq!(fs::read_dir(bench.path("run/files")).unwrap().count(), 0);
    no_loop_below(bench.directory.path());
    gone(holder).await;
}

async fn gone(pid: u32) {
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the holder ends with its file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_killed_under_load_and_no_io_fails() {
    if !have(&["fio"]) {
        return;
    }
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    let attached = bench.attacher().attach(bench.volume.clone()).await.unwrap();
    let file = format!("--filename={}", attached.device.display());
    let fio = tokio::spawn(async move {
        let arguments = [
            "--name=load",
            "--verify_state_save=0",
            "--ioengine=libaio",
            "--direct=1",
            &file,
            "--rw=randwrite",
            "--bsrange=4k-256k",
            "--iodepth=16",
            "--size=64m",
            "--time_based",
            "--runtime=6",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randrepeat=0",
            "--output-format=terse",
        ];
        run("fio", &arguments).await
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        bench.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        bench.start();
        // A new daemon knows nothing but the run directory.
        let adopted = bench.attacher().adopt().await.unwrap();
        assert_eq!(adopted.attached, std::slice::from_ref(&attached), "{adopted:?}");
        assert!(adopted.broken.is_empty() && adopted.cleaned.is_empty(), "{adopted:?}");
    }
    let output = fio.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bench.attacher().detach("v1", false).await.unwrap();
    no_loop_below(bench.directory.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holder_is_found_named_while_in_use_and_cleaned_after() {
    let Some(bench) = Bench::new(16 * MIB) else { return };
    let attached = bench.attacher().attach(bench.volume.clone()).await.unwrap();
    let holder = bench.holder();
    let open = fs::File::open(&attached.device).unwrap();
    let mut user = Command::new("sleep").arg("60").stdin(Stdio::from(open)).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(holder).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(Path::new(&format!("/proc/{holder}")).exists());
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    gone(holder).await;
    let adopted = bench.attacher().adopt().await.unwrap();
    assert!(adopted.attached.is_empty());
    assert!(matches!(&adopted.broken[..], [(name, AttachError::Busy { .. })] if name == "v1"), "{adopted:?}");
    user.kill().unwrap();
    user.wait().unwrap();
    let adopted = bench.attacher().adopt().await.unwrap();
    assert_eq!(adopted.cleaned.len(), 1, "{adopted:?}");
    assert!(!bench.path("ashlar/v1").exists() && !bench.path("run/v1.device").exists());
    no_loop_below(bench.directory.path());
    let again = bench.attacher().attach(bench.volume.clone()).await.unwrap();
    assert_eq!(again.volume, attached.volume);
    bench.attacher().detach("v1", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_without_a_record_is_swept() {
    let Some(bench) = Bench::new(16 * MIB) else { return };
    bench.attacher().attach(bench.volume.clone()).await.unwrap();
    let holder = bench.holder();
    fs::remove_file(bench.path("run/v1.device")).unwrap();
    let adopted = bench.attacher().adopt().await.unwrap();
    assert!(adopted.attached.is_empty() && adopted.broken.is_empty(), "{adopted:?}");
    assert_eq!(adopted.cleaned.len(), 4, "device, file and two links: {adopted:?}");
    gone(holder).await;
    no_loop_below(bench.directory.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_takes_a_device_from_its_users_even_with_the_server_dead() {
    let Some(mut bench) = Bench::new(16 * MIB) else { return };
    let attacher = bench.attacher();
    let attached = attacher.attach(bench.volume.clone()).await.unwrap();
    let holder = bench.holder();
    let device = attached.device.to_str().unwrap().to_owned();
    bench.kill();
    let of = format!("of={device}");
    let writer = tokio::spawn(async move {
        run("dd", &["if=/dev/zero", &of, "bs=4k", "count=100", "oflag=direct", "status=none"]).await
    });
    let stuck = async {
        while sdc_nbd::attach::users::users(&attached.device).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), stuck).await.expect("dd opens the device");
    assert!(matches!(attacher.detach("v1", false).await, Err(AttachError::Busy { .. })));
    attacher.detach("v1", true).await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(20), writer).await.expect("not stuck").unwrap();
    assert!(!output.status.success(), "its writes fail");
    gone(holder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attach_leaves_nothing_and_says_why() {
    let Some(mut bench) = Bench::new(16 * MIB) else { return };
    let mut wrong = bench.volume.clone();
    wrong.size_bytes = 32 * MIB;
    assert!(matches!(bench.attacher().attach(wrong).await, Err(AttachError::InvalidSize(_))));
    let mut odd = bench.volume.clone();
    odd.name = "../v1".to_owned();
    assert!(matches!(bench.attacher().attach(odd).await, Err(AttachError::InvalidName(_))));
    no_loop_below(bench.directory.path());
    assert_eq!(fs::read_dir(bench.path("run/files")).unwrap().count(), 0);
    assert_eq!(bench.attacher().list().await.unwrap(), []);
    bench.volume.read_only = true;
    let attached = bench.attacher().attach(bench.volume.clone()).await.unwrap();
    let of = format!("of={}", attached.device.display());
    assert!(!run("dd", &["if=/dev/zero", &of, "bs=4k", "count=1", "conv=notrunc"]).await.status.success());
    assert!(matches!(
        bench.attacher().attach(VolumeSpec { generation: 2, ..bench.volume.clone() }).await,
        Err(AttachError::Different(_))
    ));
    bench.attacher().detach("v1", false).await.unwrap();
}

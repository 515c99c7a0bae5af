//! Other people's clients: `nbdcopy`, `qemu-img`, `fio`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::runs::{HEALING, Moments, let_pass};
use crate::shell;
use crate::system::{Options, System, with_system};

/// Longest time that a client may take for one go; in health it takes seconds.
const LIMIT: Duration = Duration::from_secs(180);

/// How much.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The volume.
    pub volume: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Size of each device.
    pub device_size: &'static str,
    /// Bytes that `fio` writes and verifies in one go.
    pub fio_bytes: u64,
    /// How often a server is killed meanwhile.
    pub kills: usize,
}

/// A small image.
pub const SHORT: Extent =
    Extent { volume: "image:128MiB", bytes: 128 << 20, device_size: "1GiB", fio_bytes: 64 << 20, kills: 5 };
/// An image of 1 GiB.
pub const FULL: Extent =
    Extent { volume: "image:1GiB", bytes: 1 << 30, device_size: "4GiB", fio_bytes: 1 << 30, kills: 5 };

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Bytes copied forth and back by each tool.
    pub image_bytes: u64,
    /// Runs of `fio` without and with kills.
    pub fio_runs: (usize, usize),
    /// Kills during the latter.
    pub kills: usize,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options = Options { volumes: vec![extent.volume], device_size: extent.device_size, ..Options::default() };
    with_system(&options, |system| {
        let folder = tempfile::tempdir()?;
        let address = system.nbd(extent.volume.split(':').next().unwrap_or_default())?;
        images(folder.path(), &address.uri, extent.bytes)?;
        fio(folder.path(), &address.uri, extent.fio_bytes)?;
        let runs = fio_under_kills(system, folder.path(), &address.uri, extent)?;
        Ok(Outcome { image_bytes: extent.bytes, fio_runs: (1, runs), kills: extent.kills })
    })
}

/// An image with data, holes and odd ends.
fn make_image(path: &Path, bytes: u64, seed: u64) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(bytes).context("cannot size the image")?;
    let mut state = seed | 1;
    let mut piece = vec![0; 1 << 20];
    for chunk in (0..bytes >> 20).filter(|chunk| chunk % 5 != 3) {
        for word in piece.as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = state.to_le_bytes();
        }
        let odd = usize::try_from(chunk % 7 * 511).context("small")?;
        file.write_all_at(&piece[odd..], (chunk << 20) + odd as u64).context("cannot write the image")?;
    }
    Ok(())
}

fn images(folder: &Path, uri: &str, bytes: u64) -> anyhow::Result<()> {
    let text = |name: &str| folder.join(name).display().to_string();
    let (first, second, back) = (text("first.raw"), text("second.raw"), text("back.raw"));
    make_image(Path::new(&first), bytes, 1)?;
    make_image(Path::new(&second), bytes, 2)?;
    shell::succeed_within(LIMIT, "nbdcopy", &["--flush", &first, uri])?;
    shell::succeed_within(LIMIT, "nbdcopy", &[uri, &back])?;
    shell::succeed("cmp", &[&first, &back])?;
    shell::succeed_within(LIMIT, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &second, uri])?;
    shell::succeed_within(LIMIT, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &second, uri])?;
    std::fs::remove_file(&back).context("cannot remove an image")?;
    shell::succeed_within(LIMIT, "qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, &back])?;
    shell::succeed("cmp", &[&second, &back]).map(drop)
}

fn fio_command(folder: &Path, uri: &str, bytes: u64) -> Command {
    let mut command = shell::limited(LIMIT, "fio", &[]);
    command.current_dir(folder).stdin(Stdio::null());
    command.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k"]);
    command.args(["--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0"]);
    command.arg("--output-format=normal").arg(format!("--uri={uri}")).arg(format!("--size={bytes}"));
    command
}

fn fio(folder: &Path, uri: &str, bytes: u64) -> anyhow::Result<()> {
    shell::run(&mut fio_command(folder, uri, bytes)).map(drop)
}

/// Runs `fio` again and again until a server has been killed and started often enough; gives the number of runs.
fn fio_under_kills(system: &System, folder: &Path, uri: &str, extent: &Extent) -> anyhow::Result<usize> {
    let mut moments = Moments::fresh()?;
    let mut runs = 0;
    let mut kills = 0;
    while kills < extent.kills {
        let output = folder.join("fio.txt");
        let file = std::fs::File::create(&output).context("cannot write the output of fio")?;
        let mut command = fio_command(folder, uri, extent.fio_bytes);
        let mut child = command.stdout(file.try_clone()?).stderr(file).spawn().context("cannot run fio")?;
        while kills < extent.kills && child.try_wait().context("fio")?.is_none() {
            let server = format!("sds{}", kills % 3 + 1);
            let_pass(moments.below(Duration::from_millis(500)));
            system.kill(&server)?;
            let_pass(moments.below(Duration::from_millis(1000)));
            system.start(&server)?;
            system.wait_healthy(HEALING)?;
            kills += 1;
        }
        let status = child.wait().context("fio")?;
        runs += 1;
        if !status.success() {
            bail!("fio: {status}\n{}", std::fs::read_to_string(&output).unwrap_or_default());
        }
    }
    Ok(runs)
}

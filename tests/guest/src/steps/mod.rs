//! What is tested, one promise each, in the order in which they build on each other.

mod detach;
mod device;
mod files;
mod restarts;
mod space;

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::system::{Options, with_system};

use crate::world::World;

/// How large and how often.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Orderly restarts under load.
    pub restarts: u32,
    /// SIGKILLs under load.
    pub kills: u32,
}

/// A step: its name, and what it does. It says what it measured.
type Step = (&'static str, fn(&mut World<'_>, Extent) -> anyhow::Result<String>);

const STEPS: [Step; 10] = [
    ("a mapped volume becomes a block device by itself", files::appears),
    ("ext4 and xfs hold what heavy activity left in them", files::activity),
    ("a device behaves as disks do", device::manners),
    ("what a file system trims arrives as free space", space::trim),
    ("a mounted device grows with its volume", space::resize),
    ("nobody notices restarts and kills of the data client", restarts::client),
    ("nobody notices the death of a data server", restarts::server),
    ("a device in use is not taken away, and taken away by force", detach::in_use),
    ("devices come and go under load", detach::many_times),
    ("nothing stale is left after a crash", detach::after_a_crash),
];

/// Steps that make what the others need: devices, and file systems on them.
const FIRST: usize = 2;

/// Boots a guest and runs the steps whose names contain `only`, and before them those that they need.
pub fn run(kernel: &Path, restarts: u32, kills: u32, only: Option<&str>) -> anyhow::Result<()> {
    let options = Options {
        mdm: 1,
        sds: 3,
        devices: 1,
        device_size: "2GiB",
        volumes: vec!["spare:64MiB"],
        isolate: true,
        ..Options::default()
    };
    let extent = Extent { restarts, kills };
    let begun = Instant::now();
    with_system(&options, |system| {
        let folder = tempfile::Builder::new().prefix("ashlar-guest-").tempdir()?;
        let mut world = World::new(system, kernel, folder.path())?;
        println!("guest: up after {:.1} s", begun.elapsed().as_secs_f64());
        for (index, (name, step)) in STEPS.iter().enumerate() {
            if index >= FIRST && only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let started = Instant::now();
            match step(&mut world, extent) {
                Ok(figures) => println!("guest: {name}: {:.1} s; {figures}", started.elapsed().as_secs_f64()),
                Err(error) => {
                    world.complain();
                    return Err(error.context(format!("{name}: no, after {:.1} s", started.elapsed().as_secs_f64())));
                }
            }
        }
        Ok(())
    })?;
    println!("guest: all of it holds, {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// How long a load may go on after it was told to end: it reads everything back first.
const ENDING: Duration = Duration::from_secs(60);

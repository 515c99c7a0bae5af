//! Power fails after every kind of step; what the medium may then hold is opened and compared with the model.
//!
//! Seeds are fixed. `STORE_SEEDS=n` runs that many, or until `STORE_IMAGES` were opened, `STORE_FIRST_SEED` says where to
//! begin; a failure prints its seed. `STORE_IMAGE_CHANCE` and `STORE_STEPS` make a run denser and longer.

#![allow(clippy::unwrap_used)]

mod support;

use support::world::{number, options_of, run};

#[test]
fn every_admissible_image_opens_to_what_was_acknowledged() {
    let (seeds, first) = (number("STORE_SEEDS", 20), number("STORE_FIRST_SEED", 1));
    let steps = number("STORE_STEPS", 1500);
    let mut images = 0;
    for seed in first..first + seeds {
        println!("seed {seed}, {images} images so far");
        images += run(seed, steps, options_of(seed));
        if images >= number("STORE_IMAGES", u64::MAX) {
            println!("seeds {first} to {seed}");
            break;
        }
    }
    println!("{images} images opened");
}

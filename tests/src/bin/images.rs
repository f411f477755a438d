//! Builds the images of the checkout, and those that stand in for public ones, and prints the paths of their tar files.

use anyhow::Result;
use cabloy_tests::images;
use clap::Parser;

/// Container images for tests and demo.
#[derive(Parser)]
enum Args {
    /// The images of the agent and the operator.
    Build,
    /// All images: also those that stand in for `redis:7` and `node:20-slim`.
    All,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let own = images::build()?;
    let mut tars = vec![own.agent_tar, own.operator_tar];
    if matches!(args, Args::All) {
        tars.extend([images::redis()?, images::node()?]);
    }
    for tar in tars {
        println!("{}", tar.display());
    }
    Ok(())
}

//! The operator's program.

use cabloy_operator::cli::Cli;
use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another provider of cryptography was installed before"))?;
    cli.run().await
}

//! `runcast migrate`: the store's schema, and what its nodes have agreed on.

use std::process::ExitCode;

use clap::Args;

use super::SettingFlags;
use crate::app;
use crate::store::{Proposal, StoreError};

/// Brings the store's schema up to date. Nodes do it themselves when they start, unless postgres.migrate is
/// "false".
#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Records the mode and the namespace of this configuration as what all nodes must agree on, whatever
    /// was recorded before.
    #[arg(long)]
    adopt: bool,
}

pub(super) fn migrate(args: MigrateArgs) -> ExitCode {
    let config = match args.settings.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let proposal = Proposal { mode: config.mode.to_string(), namespace: config.namespace.clone() };
    let migrated = super::on_runtime(async {
        let store = app::migrate(&config).await?;
        let agreement = store.agree(&proposal, args.adopt).await?;
        store.close().await;
        Ok::<_, app::StartError>(agreement)
    });
    match migrated {
        Ok(agreement) => {
            let agreed = &agreement.agreed;
            println!("store {}: schema version {}", config.store, agreement.schema);
            println!("its nodes agree on mode {} and namespace {}", agreed.mode, agreed.namespace);
            if *agreed != proposal {
                println!(
                    "this configuration has mode {} and namespace {}: --adopt makes them what nodes must agree on",
                    proposal.mode, proposal.namespace
                );
            }
            ExitCode::SUCCESS
        }
        Err(app::StartError::Store(StoreError::Unavailable(reason))) => {
            eprintln!("runcast: the store cannot be reached: {reason}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("runcast: {error}");
            ExitCode::FAILURE
        }
    }
}

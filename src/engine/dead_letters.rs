//! Dead letters: what could not be done and waits for a person, who looks at it, and requeues or removes it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::ingest::create_run;
use super::{CreateError, Engine, Key, webhooks};
use crate::run::{Tenant, Timestamp};
use crate::store::{DeadLetter, Depths, Discard, StoreError, Stored, TenantDepths};

/// Why a dead letter was not requeued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequeueError {
    /// There is no such letter.
    #[error("there is no such dead letter")]
    Missing,
    /// It is a message that no run could be made of, and still cannot.
    #[error("no run can be made of the message: {0}")]
    Unmapped(String),
    /// A run was not accepted.
    #[error(transparent)]
    Refused(#[from] CreateError),
}

impl From<StoreError> for RequeueError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Engine {
    /// How much waits where.
    pub async fn depths(&self) -> Result<Depths, StoreError> {
        self.node.store.depths().await
    }

    /// What each tenant has queued and running; tenants without any are left out.
    pub async fn depths_by_tenant(&self) -> Result<BTreeMap<Tenant, TenantDepths>, StoreError> {
        self.node.store.depths_by_tenant().await
    }

    /// Dead letters, in the order of their times, at most `limit`, beginning after `after`.
    pub async fn dead_letters(
        &self,
        after: Option<(Timestamp, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.node.store.dead_letters(after, limit).await
    }

    /// The dead letter `id`.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.node.store.dead_letter(id).await
    }

    /// Makes a new run of a dead letter, which goes on from the last finished step of the one that failed,
    /// and removes the letter. Final is final: the failed run stays as it is. Safe to repeat: one letter
    /// makes one run.
    pub async fn requeue(&self, id: Uuid) -> Result<Stored, RequeueError> {
        let letter = self.dead_letter(id).await?.ok_or(RequeueError::Missing)?;
        let (stored, _) = match letter.run {
            Some(run) => {
                let key = Key { route: "requeue", key: id.to_string(), fingerprint: [0; 32] };
                // Letters are the operator's, runs their tenants'.
                let tenant = self.node.store.tenant_of(run).await?.unwrap_or_default();
                self.retry(&tenant, run, Some(key)).await?
            }
            None => self.map_again(&letter).await?,
        };
        self.node.store.discard(Discard::One(id)).await?;
        Ok(stored)
    }

    /// Removes dead letters; returns how many.
    pub async fn discard(&self, letters: Discard) -> Result<u64, StoreError> {
        self.node.store.discard(letters).await
    }

    /// Maps the message as if it had come again, under its own key: one that was pushed twice makes one run.
    async fn map_again(&self, letter: &DeadLetter) -> Result<(Stored, bool), RequeueError> {
        let name = &letter.source;
        let mapping = self.node.mappings.get(name);
        if mapping.is_none() && name == webhooks::SOURCE {
            let instead = "it is a webhook: POST /v1/webhooks/deliveries/{id}/redeliver sends it again";
            return Err(RequeueError::Unmapped(instead.to_owned()));
        }
        let mapping = mapping.ok_or_else(|| RequeueError::Unmapped(format!("there is no [ingest.{name}]")))?;
        let wish = mapping.map(&letter.payload).map_err(RequeueError::Unmapped)?;
        Ok(self.create(create_run(name, wish)).await?)
    }
}

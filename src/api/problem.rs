//! What is refused, as `application/problem+json` (RFC 9457): the one table of codes.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use crate::engine::{
    CreateError, RequeueError, ResumeError, RunRequestError, ScheduleError, ThreadRequestError, WatchThreadError,
    WebhookError,
};
use crate::store::StoreError;
use crate::thread::Refusal;
use crate::webhook::KeyError;

/// A refusal. The text may change between versions, the code does not.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the code says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The meaning of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// Stable, in snake case.
    code: &'static str,
    /// What is wrong and what was expected, for people.
    detail: String,
    /// The field of the body, query or header that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:ident;)+) => {
        /// The codes, each with its status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            fn parts(self) -> (&'static str, StatusCode) {
                match self { $(Self::$name => ($code, StatusCode::$status),)+ }
            }
        }

        /// The rows of the documentation: status, code, meaning.
        #[cfg(test)]
        const ROWS: &[(StatusCode, &str, &str)] = &[$((StatusCode::$status, $code, concat!($($doc),+)),)+];
    };
}

codes! {
    /// The body is not JSON.
    InvalidJson = "invalid_json", BAD_REQUEST;
    /// A field of the body, the query or a header is unknown, missing, of the wrong type or out of bounds.
    InvalidField = "invalid_field", BAD_REQUEST;
    /// There is no agent of that name here.
    UnknownAgent = "unknown_agent", BAD_REQUEST;
    /// The sequence number lies beyond what can have been shown.
    SequenceBeyondLog = "sequence_beyond_log", BAD_REQUEST;
    /// An API key is needed, and none or a wrong one was given.
    Unauthorized = "unauthorized", UNAUTHORIZED;
    /// Without API keys only loopback host names are answered.
    ForbiddenHost = "forbidden_host", FORBIDDEN;
    /// The route tells of all tenants; only keys of `server.api_keys` may use it.
    OperatorsOnly = "operators_only", FORBIDDEN;
    /// There is no such run, thread, schedule, dead letter or route.
    NotFound = "not_found", NOT_FOUND;
    /// The route does not take this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// The idempotency key was used before, with another body.
    IdempotencyKeyReused = "idempotency_key_reused", CONFLICT;
    /// No run can be made of the message.
    Unmapped = "unmapped", CONFLICT;
    /// The run has not ended yet.
    RunNotFinal = "run_not_final", CONFLICT;
    /// Only a failed or cancelled run can be retried.
    RunNotRetryable = "run_not_retryable", CONFLICT;
    /// The run does not wait for an answer.
    RunNotWaiting = "run_not_waiting", CONFLICT;
    /// The run waits for the answer to another question.
    StaleWait = "stale_wait", CONFLICT;
    /// The id belongs to another's thread.
    ThreadIdTaken = "thread_id_taken", CONFLICT;
    /// A run is going on in the thread.
    ThreadBusy = "thread_busy", CONFLICT;
    /// People have taken the thread over.
    ThreadHandedOff = "thread_handed_off", CONFLICT;
    /// A tenant may have so many webhook endpoints and no more.
    TooManyEndpoints = "too_many_endpoints", CONFLICT;
    /// The webhook endpoint is disabled.
    EndpointDisabled = "endpoint_disabled", CONFLICT;
    /// The run is gone: it ended longer ago than `retention.runs`.
    Gone = "gone", GONE;
    /// The body is larger than `server.max_body`.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// The input is larger than `limits.max_input`.
    InputTooLarge = "input_too_large", PAYLOAD_TOO_LARGE;
    /// The body's content type is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE;
    /// `limits.max_waiting` runs are scheduled or queued, or the tenant's own `max_waiting`.
    TooManyWaiting = "too_many_waiting", TOO_MANY_REQUESTS;
    /// `limits.max_pending` runs wait in the thread.
    ThreadFull = "thread_full", TOO_MANY_REQUESTS;
    /// The tenant asks for runs faster than its `rate` allows.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    /// The node is starting.
    Starting = "starting", SERVICE_UNAVAILABLE;
    /// The node is shutting down.
    Draining = "draining", SERVICE_UNAVAILABLE;
    /// Every worker that has the agent lacks something for it, such as a provider's key.
    AgentUnavailable = "agent_unavailable", SERVICE_UNAVAILABLE;
    /// Webhooks need `webhooks.key`, which is not set or cannot be read.
    WebhooksUnavailable = "webhooks_unavailable", SERVICE_UNAVAILABLE;
    /// `server.connections` is off.
    ConnectionsDisabled = "connections_disabled", SERVICE_UNAVAILABLE;
    /// The store cannot be reached.
    StoreUnavailable = "store_unavailable", SERVICE_UNAVAILABLE;
    /// The store has no room left.
    StoreFull = "store_full", INSUFFICIENT_STORAGE;
    /// Something broke; the node's log has the details under the request's id.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

impl Problem {
    /// A problem of kind `code`; `detail` says what is wrong and what was expected.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let (code, status) = code.parts();
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            field: None,
            retry_after: None,
        }
    }

    /// A field that does not make sense.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let field = field.into();
        let detail = format!("{field}: {}", detail.into());
        Self { field: Some(field), ..Self::new(Code::InvalidField, detail) }
    }

    /// The same about another field, where a route calls it otherwise; or about a part of it.
    pub(crate) fn about(mut self, from: &str, to: &str) -> Self {
        let part = self.field.as_deref().and_then(|field| field.strip_prefix(from));
        if let Some(part) = part.filter(|part| part.is_empty() || part.starts_with(['[', '.'])) {
            self.field = Some(format!("{to}{part}"));
            self.detail = self.detail.replacen(from, to, 1);
        }
        self
    }

    /// There is no such run.
    pub(crate) fn no_run() -> Self {
        Self::new(Code::NotFound, "there is no such run")
    }

    /// Come back after so many seconds.
    #[must_use]
    fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Clients are not served for now.
    pub(crate) fn disabled() -> Self {
        Self::new(Code::ConnectionsDisabled, "connections are disabled by server.connections").retry_after(30)
    }

    /// The node is starting.
    pub(crate) fn starting() -> Self {
        Self::new(Code::Starting, "the node is starting; GET /ready says what is missing").retry_after(1)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        let mut response = HttpResponse::build(self.status_code());
        response.content_type("application/problem+json");
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.status == 401 {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(_) => {
                tracing::error!(%error, "a request failed");
                Self::new(Code::StoreFull, "the store has no room left").retry_after(30)
            }
            StoreError::Unavailable(_) => {
                // An outage is told where it is found, not for each request that meets it.
                tracing::debug!(%error, "a request failed");
                Self::new(Code::StoreUnavailable, "the store is not available").retry_after(1)
            }
            StoreError::ReadOnly(_) => {
                tracing::error!(%error, "a request failed");
                Self::new(Code::StoreUnavailable, "the store is not available").retry_after(1)
            }
            StoreError::Closed => Self::new(Code::Draining, "the node is shutting down").retry_after(1),
            // The text names what is to be done, and no secret.
            StoreError::Foreign(_) | StoreError::Misconfigured(_) | StoreError::InUse(_) => {
                Self::new(Code::StoreUnavailable, error.to_string()).retry_after(30)
            }
            StoreError::Corrupt(_) => {
                tracing::error!(%error, "a request failed");
                Self::new(Code::Internal, "the store is damaged; the log of the node has the details")
            }
        }
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        let detail = error.to_string();
        match error {
            CreateError::Invalid { field, .. } => Self { field: Some(field), ..Self::new(Code::InvalidField, detail) },
            CreateError::UnknownAgent { .. } => {
                Self { field: Some("agent".to_owned()), ..Self::new(Code::UnknownAgent, detail) }
            }
            CreateError::InputTooLarge { .. } => {
                Self { field: Some("input".to_owned()), ..Self::new(Code::InputTooLarge, detail) }
            }
            CreateError::TooManyWaiting { .. } | CreateError::TooManyOfTenant { .. } => {
                Self::new(Code::TooManyWaiting, detail).retry_after(1)
            }
            CreateError::RateLimited { retry_after, .. } => {
                // In whole seconds, and never too early.
                let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u32;
                Self::new(Code::RateLimited, detail).retry_after(seconds)
            }
            CreateError::KeyReused => {
                Self { field: Some("Idempotency-Key".to_owned()), ..Self::new(Code::IdempotencyKeyReused, detail) }
            }
            CreateError::NotRetryable(_) => Self::new(Code::RunNotRetryable, detail),
            CreateError::Missing => Self::no_run(),
            CreateError::ThreadMissing => Self::new(Code::NotFound, detail),
            CreateError::Refused(Refusal::Busy { .. }) => Self::new(Code::ThreadBusy, detail),
            CreateError::Refused(Refusal::Full { .. }) => Self::new(Code::ThreadFull, detail).retry_after(1),
            CreateError::Refused(Refusal::HandedOff | Refusal::StaleTimer) => Self::new(Code::ThreadHandedOff, detail),
            CreateError::AgentUnavailable { .. } => Self::new(Code::AgentUnavailable, detail).retry_after(10),
            CreateError::NoWebhookKey(error) => error.into(),
            CreateError::Draining => Self::new(Code::Draining, detail).retry_after(1),
            CreateError::Store(error) => error.into(),
        }
    }
}

impl From<RequeueError> for Problem {
    fn from(error: RequeueError) -> Self {
        let detail = error.to_string();
        match error {
            RequeueError::Missing => Self::new(Code::NotFound, detail),
            RequeueError::Unmapped(_) => Self::new(Code::Unmapped, detail),
            RequeueError::Refused(error) => error.into(),
        }
    }
}

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        let detail = error.to_string();
        match error {
            ScheduleError::Missing => Self::new(Code::NotFound, detail),
            ScheduleError::Refused(error) => error.into(),
        }
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        tracing::error!(%error, "a request failed");
        // Where the file is, is the operator's to know.
        let detail = match &error {
            KeyError::Missing => error.to_string(),
            KeyError::File { .. } => {
                "the key of webhooks cannot be read; the log of the node has the details".to_owned()
            }
        };
        Self::new(Code::WebhooksUnavailable, detail).retry_after(30)
    }
}

impl From<WebhookError> for Problem {
    fn from(error: WebhookError) -> Self {
        let detail = error.to_string();
        match error {
            WebhookError::Invalid { field, message } => Self::field(field, message),
            WebhookError::Missing(_) => Self::new(Code::NotFound, detail),
            WebhookError::NoKey(error) => error.into(),
            WebhookError::KeyReused => {
                Self { field: Some("Idempotency-Key".to_owned()), ..Self::new(Code::IdempotencyKeyReused, detail) }
            }
            WebhookError::TooMany => Self::new(Code::TooManyEndpoints, detail),
            WebhookError::Disabled => Self::new(Code::EndpointDisabled, detail),
            WebhookError::Store(error) => error.into(),
        }
    }
}

impl From<RunRequestError> for Problem {
    fn from(error: RunRequestError) -> Self {
        let detail = error.to_string();
        match error {
            RunRequestError::Missing => Self::no_run(),
            RunRequestError::Gone => Self::new(Code::Gone, detail),
            RunRequestError::NotFinal(_) => Self::new(Code::RunNotFinal, detail),
            RunRequestError::Beyond { .. } => Self::new(Code::SequenceBeyondLog, detail),
            RunRequestError::Store(error) => error.into(),
        }
    }
}

impl From<ThreadRequestError> for Problem {
    fn from(error: ThreadRequestError) -> Self {
        let detail = error.to_string();
        match error {
            ThreadRequestError::Missing => Self::new(Code::NotFound, detail),
            ThreadRequestError::Busy(_) => Self::new(Code::ThreadBusy, detail),
            ThreadRequestError::Invalid { field, .. } => {
                Self { field: Some(field), ..Self::new(Code::InvalidField, detail) }
            }
            ThreadRequestError::Taken => Self::new(Code::ThreadIdTaken, detail),
            ThreadRequestError::Draining => Self::new(Code::Draining, detail).retry_after(1),
            ThreadRequestError::Store(error) => error.into(),
        }
    }
}

impl From<ResumeError> for Problem {
    fn from(error: ResumeError) -> Self {
        let detail = error.to_string();
        match error {
            ResumeError::Missing => Self::no_run(),
            ResumeError::NotWaiting(_) => Self::new(Code::RunNotWaiting, detail),
            ResumeError::Stale { .. } => {
                Self { field: Some("wait_id".to_owned()), ..Self::new(Code::StaleWait, detail) }
            }
            ResumeError::Store(error) => error.into(),
        }
    }
}

impl From<WatchThreadError> for Problem {
    fn from(error: WatchThreadError) -> Self {
        let detail = error.to_string();
        match error {
            WatchThreadError::Missing => Self::new(Code::NotFound, detail),
            WatchThreadError::Beyond => Self::new(Code::SequenceBeyondLog, detail),
            WatchThreadError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ROWS;

    #[test]
    fn every_code_has_its_row_in_the_documentation() {
        let documented = include_str!("../../docs/errors.md");
        for (status, code, meaning) in ROWS {
            let row = format!("| {} | `{code}` | {} |", status.as_u16(), meaning.trim());
            assert!(documented.contains(&row), "docs/errors.md lacks: {row}");
        }
    }
}

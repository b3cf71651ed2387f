//! Why a request was not done, as problem details (RFC 9457).

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

/// Its media type.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    /// The fields that are wrong.
    pub(crate) errors: Vec<Wrong>,
    header: Option<(HeaderName, &'static str)>,
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// A member of the body (as JSON pointer), or a parameter of the query, or a header.
    pub(crate) at: At,
    /// What is wrong with it.
    pub(crate) detail: String,
}

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// A JSON pointer (RFC 6901) into the body.
    Body(String),
    /// A parameter of the query.
    Parameter(String),
    /// A header.
    Header(&'static str),
}

impl Wrong {
    pub(crate) fn body(pointer: impl Into<String>, detail: impl Into<String>) -> Wrong {
        Wrong { at: At::Body(pointer.into()), detail: detail.into() }
    }

    pub(crate) fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Wrong {
        Wrong { at: At::Parameter(name.into()), detail: detail.into() }
    }

    pub(crate) fn header(name: &'static str, detail: impl Into<String>) -> Wrong {
        Wrong { at: At::Header(name), detail: detail.into() }
    }
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem { status, detail: detail.into(), errors: Vec::new(), header: None }
    }

    /// Fields that are wrong.
    pub(crate) fn fields(errors: Vec<Wrong>) -> Problem {
        let detail = match errors.as_slice() {
            [one] => one.detail.clone(),
            more => format!("{} fields are wrong", more.len()),
        };
        Problem { status: StatusCode::UNPROCESSABLE_ENTITY, detail, errors, header: None }
    }

    /// A conflict with what is there, because of one field.
    pub(crate) fn conflict(wrong: Wrong) -> Problem {
        let mut problem = Problem::new(StatusCode::CONFLICT, wrong.detail.clone());
        problem.errors.push(wrong);
        problem
    }

    pub(crate) fn not_found(what: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, what)
    }

    pub(crate) fn method(allowed: &'static str) -> Problem {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("allowed here: {allowed}"));
        Problem { header: Some((ALLOW, allowed)), ..problem }
    }

    pub(crate) fn unauthorized() -> Problem {
        let why = "send Authorization: Bearer and an API key of this node";
        let problem = Problem::new(StatusCode::UNAUTHORIZED, why);
        Problem { header: Some((WWW_AUTHENTICATE, "Bearer")), ..problem }
    }

    /// Not now, perhaps in a second.
    pub(crate) fn unavailable(why: impl Into<String>) -> Problem {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
        Problem { header: Some((RETRY_AFTER, "1")), ..problem }
    }

    fn json(&self) -> Value {
        let errors = self.errors.iter().map(|wrong| {
            let (member, at) = match &wrong.at {
                At::Body(pointer) => ("pointer", format!("#{pointer}")),
                At::Parameter(name) => ("parameter", name.clone()),
                At::Header(name) => ("header", (*name).to_owned()),
            };
            json!({ member: at, "detail": wrong.detail })
        });
        let mut problem = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.errors.is_empty() {
            problem["errors"] = errors.collect();
        }
        problem
    }

    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", self.json()))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(self.header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_named() {
        let wrong = vec![Wrong::body("/title", "is too long"), Wrong::parameter("limit", "is 0")];
        let said = Problem::fields(wrong).json();
        assert_eq!(said["status"], 422);
        assert_eq!(said["detail"], "2 fields are wrong");
        assert_eq!(said["errors"][0], json!({ "pointer": "#/title", "detail": "is too long" }));
        assert_eq!(said["errors"][1], json!({ "parameter": "limit", "detail": "is 0" }));
        assert!(Problem::not_found("x").json().get("errors").is_none());
    }
}

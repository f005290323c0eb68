// What can go wrong before the registration authority is asked. The Kinds are words of this package; which HTTP status
// they become is respond.go's business.

package front

// Kind says what was wrong with a request. It is the reason word of the answer unless the Error has one of its own.
type Kind string

// Kinds of Error.
const (
	NoTLS            Kind = "no_tls"               // the request did not come over TLS
	UnknownOperation Kind = "unknown_operation"    // no such path
	UnknownLabel     Kind = "unknown_label"        // no such label
	Method           Kind = "method_not_allowed"   // the operation has other methods
	NotSupported     Kind = "not_supported"        // an optional operation that this server does not have
	SwitchedOff      Kind = "switched_off"         // an optional operation that is not on
	MediaType        Kind = "media_type"           // Content-Type or Content-Encoding
	TooLarge         Kind = "too_large"            // body
	BadBody          Kind = "bad_body"             // not base64, truncated
	BadCSR           Kind = "bad_csr"              // not a PKCS#10 request, or one that two readers could read differently
	BadKey           Kind = "bad_key"              // a key that no profile could accept
	BadSignature     Kind = "bad_signature"        // proof-of-possession failed
	BadBinding       Kind = "bad_channel_binding"  // challengePassword is not this connection's
	RateLimited      Kind = "too_many_wrong_codes" // from this address
	NoCA             Kind = "no_ca_certificate"    // there is none to hand out yet
	Stopped          Kind = "stopped"              // the device hung up before anything was done
)

// Error is a refusal. Detail is for the device: it names the rule. Err is for the log.
type Error struct {
	Kind   Kind
	Reason string // stable word for Est-Reason; empty: the Kind
	Detail string
	Err    error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Detail + ": " + e.Err.Error()
	}
	return e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Package wire is what an EST server and an EST client must agree about byte by byte: paths, media
// types, base64 bodies, certs-only CMS messages and CSR attributes (RFC 7030, RFC 8951).
//
// What comes in is read leniently where RFC 8951 says so and strictly everywhere else; what goes out has one form only.
// Nothing here panics, whatever it is given, and what it allocates is bounded by its input. It does not know HTTP, and
// it builds no PKCS#10: that is the client's part.
//
//	wire.go      names: paths, media types, headers
//	base64.go    RFC 8951 section 3: base64 without Content-Transfer-Encoding
//	certsonly.go RFC 5272 section 4.1 / RFC 5652: SignedData that carries certificates only
//	csrattrs.go  RFC 7030 section 4.5.2: what the server wants to see in a request
package wire

// PathPrefix stands before each operation and label (RFC 7030 section 3.2.2).
const PathPrefix = "/.well-known/est"

// Operations, the last element of a path.
const (
	OpCACerts        = "cacerts"
	OpCSRAttrs       = "csrattrs"
	OpSimpleEnroll   = "simpleenroll"
	OpSimpleReenroll = "simplereenroll"
	OpServerKeyGen   = "serverkeygen"
	OpFullCMC        = "fullcmc"
)

// Media types. TypeCertsOnly is what a server sends; a reader compares the type without its parameters.
const (
	TypePKCS7     = "application/pkcs7-mime"
	TypeCertsOnly = "application/pkcs7-mime; smime-type=certs-only"
	TypePKCS10    = "application/pkcs10"
	TypeCSRAttrs  = "application/csrattrs"
	TypePKCS8     = "application/pkcs8"
	TypeText      = "text/plain; charset=utf-8"
)

// Headers whose spelling matters. Some clients look for AuthenticateHeader in exactly this case, which is not the
// canonical form of net/http: set it through the header map.
const (
	AuthenticateHeader = "WWW-Authenticate"
	ReasonHeader       = "Est-Reason" // one stable word that names the rule behind a refusal
)

// Path is the path of an operation under a label; the empty label is the path without one.
func Path(label, operation string) string {
	if label == "" {
		return PathPrefix + "/" + operation
	}
	return PathPrefix + "/" + label + "/" + operation
}

// IsOperation reports whether s is a path element that a label must not be (RFC 7030 section 3.2.2).
func IsOperation(s string) bool {
	switch s {
	case OpCACerts, OpCSRAttrs, OpSimpleEnroll, OpSimpleReenroll, OpServerKeyGen, OpFullCMC:
		return true
	}
	return false
}

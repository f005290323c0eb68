// Package conformance holds the EST cases as code: one function for each case, run from outside against any EST server.
//
// A case is one or a few exchanges. It opens its own connections, writes its own bytes and decodes answers with nothing of
// this project's server or client, so that a fault that both sides share is seen. Besides its own expectation each case holds
// the general ones: no 5xx because of what a client sent, no empty 200, a server that still serves afterwards.
//
// What a case needs and the Target does not have (a code, a birth certificate, a second label) makes it a skip with
// a reason, never a pass.
//
//	conformance.go  Target, Case, Run
//	exchange.go     one HTTP exchange, byte by byte
//	request.go      PKCS#10 requests, good and broken
//	decode.go       base64, CMS and CSR attributes of answers
//	group_*.go      the cases, by group: A TLS and HTTP, B /cacerts, C labels, D /csrattrs, E /simpleenroll, F transfer rules,
//	                G HTTP authentication, H client certificates, I linking, J /simplereenroll, L and M optional operations
package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Code is an enrollment code for a device that has none of its certificates yet.
type Code struct {
	Device string
	Code   string
}

// Identity is a client certificate and the device id that it stands for.
type Identity struct {
	Device      string
	Certificate tls.Certificate // with the chain that the device sends; Leaf is set
}

// Labels are the labels that group C needs. An empty name skips its cases.
type Labels struct {
	A             string // its CA differs from B's and from the default's
	B             string
	LikeOperation string // contains an operation's name ("my-cacerts-ca")
	Long          string // of exactly 128 characters
}

// Target is a server under test. Only URL and Anchors are required.
type Target struct {
	URL     string              // "https://host:port", no path
	Anchors []*x509.Certificate // of the server's own certificate
	Labels  Labels

	// Code returns a fresh code of a new device under a label ("" = the path without one).
	Code func(ctx context.Context, label string) (Code, error)
	// Birth returns a birth certificate, never used before, of a CA that the path without a label accepts.
	Birth func(ctx context.Context) (Identity, error)
	// ExpiredBirth is like Birth, but the certificate has ended.
	ExpiredBirth func(ctx context.Context) (Identity, error)
	// Revoke revokes a certificate that a case was issued.
	Revoke func(ctx context.Context, cert *x509.Certificate) error
	// RollRoot replaces the root above the path without a label by a new one, and is called once; both are valid then.
	RollRoot func(ctx context.Context) error
	// RollIssuer gives the path without a label a new issuing CA, and is called once. When it returns, that one issues.
	RollIssuer func(ctx context.Context) error
	// Pass lets so much time go by for the server.
	Pass func(ctx context.Context, d time.Duration) error
	// PlainURL reaches the same server without TLS ("http://host:port"), as behind a careless proxy.
	PlainURL string
}

// Level is how binding a case is.
type Level string

// Levels, as RFC 2119 means them; Security is not in an EST RFC and required here.
const (
	Must     Level = "MUST"
	Should   Level = "SHOULD"
	May      Level = "MAY"
	Security Level = "SEC"
)

// Case is one check.
type Case struct {
	ID     string // "A1"
	Level  Level
	Title  string
	Source string
	Slow   bool // takes more than a second or two
	Run    func(ctx context.Context, s *Session) error
}

// Session is what the cases of one run share.
type Session struct {
	Target Target
}

// ErrSkip is in the error of a case that the target lacks something for.
var ErrSkip = errors.New("skipped")

func skip(what string) error { return fmt.Errorf("%w: the target has no %s", ErrSkip, what) }

// Cases returns all cases in the order of their numbers.
func Cases() []Case {
	var all []Case
	for _, group := range [][]Case{groupA, groupB, groupC, groupD, groupE, groupF, groupG, groupH, groupI, groupJ, groupL} {
		all = append(all, group...)
	}
	return all
}

// Run runs one case and then asks whether the server still serves.
func (s *Session) Run(ctx context.Context, c Case) error {
	if err := c.Run(ctx, s); err != nil {
		return err
	}
	if _, err := s.caCerts(ctx, ""); err != nil {
		return fmt.Errorf("the server does not serve after the case: %w", err)
	}
	return nil
}

// expect returns nil if the status is one of want.
func expect(r *response, want ...int) error {
	for _, w := range want {
		if r.status == w {
			return nil
		}
	}
	return fmt.Errorf("%s %s: status %d (%.200q), want %v", r.method, r.path, r.status, r.body, want)
}

// expect4xx returns nil if the request was refused with a readable text.
func expect4xx(r *response) error {
	if r.status < 400 || r.status > 499 {
		return fmt.Errorf("%s %s: status %d (%.200q), want 4xx", r.method, r.path, r.status, r.body)
	}
	return r.readableError()
}

// freshCode returns a code of the target.
func (s *Session) freshCode(ctx context.Context, label string) (Code, error) {
	if s.Target.Code == nil {
		return Code{}, skip("enrollment codes")
	}
	return s.Target.Code(ctx, label)
}

func (s *Session) freshBirth(ctx context.Context) (Identity, error) {
	if s.Target.Birth == nil {
		return Identity{}, skip("birth certificates")
	}
	return s.Target.Birth(ctx)
}

// each runs check for each of items and says at which one it failed.
func each[T any](items []T, check func(T) error) error {
	for _, item := range items {
		if err := check(item); err != nil {
			return fmt.Errorf("%v: %w", item, err)
		}
	}
	return nil
}

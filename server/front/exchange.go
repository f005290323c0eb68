// An exchange is one request on its way through the server. It is the only thing that travels in a context, and only
// as far as the callbacks of the encoder.

package front

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/server/registration"
	"github.com/natal-pki/natal/server/telemetry"
)

type exchange struct {
	id      string
	op      operation
	begun   time.Time // by the server's clock
	request *http.Request

	label     registration.Label // zero until it is found
	csr       requestShape
	requester registration.Requester // zero until authenticated
	issued    ca.Certificate         // zero until there is something to hand out
	err       error                  // what went wrong in a callback of the encoder
	renew     bool
}

type exchangeKey struct{}

func exchangeFrom(ctx context.Context) *exchange {
	return ctx.Value(exchangeKey{}).(*exchange)
}

// handler runs an operation and answers, whatever happens in it.
func (f *Front) handler(op operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		x := &exchange{id: newRequestID(), op: op, begun: f.clock.Now(), request: r}
		a, err := f.run(r.Context(), x)
		if err != nil {
			f.auditRefusal(r.Context(), x, err)
		}
		a = f.respond(w, x, a, err)
		f.metrics.Record(r.Context(), f.log, f.record(x, a, err, time.Since(start)))
	}
}

// run turns a panic into an error: net/http would cut the connection and leave no answer and no record.
func (f *Front) run(ctx context.Context, x *exchange) (a answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			a, err = answer{}, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if err := f.checkMethod(x); err != nil {
		return answer{}, err
	}
	if x.request.TLS == nil {
		return answer{}, &Error{Kind: NoTLS, Detail: "EST needs HTTPS"}
	}
	if x.op.name == "other" {
		return x.op.run(f, ctx, x)
	}
	if err := f.findLabel(ctx, x); err != nil {
		return answer{}, err
	}
	return x.op.run(f, ctx, x)
}

func (f *Front) checkMethod(x *exchange) error {
	if x.op.methods == "" {
		return nil
	}
	for m := range strings.SplitSeq(x.op.methods, ", ") {
		if x.request.Method == m {
			return nil
		}
	}
	return &Error{Kind: Method, Detail: x.op.name + " answers to " + x.op.methods}
}

func (f *Front) record(x *exchange, a answer, err error, took time.Duration) telemetry.Request {
	r := telemetry.Request{
		ID: x.id, Method: x.request.Method, Operation: x.op.name, Label: telemetry.Unknown,
		Status: a.status, Reason: a.reason, Remote: x.request.RemoteAddr,
		Requester: x.requester.Kind, Device: x.requester.Device, Serial: x.issued.Serial,
		Redelivered: x.issued.Serial != "" && x.issued.IssuedAt.Before(x.begun.Truncate(time.Millisecond)),
		BodyBytes:   len(a.body), Duration: took, Challenge: a.status == http.StatusUnauthorized && !x.shown(),
	}
	if x.label.Name != "" {
		r.Label, r.Profile = x.label.Name, x.label.Profile
	}
	r.Err = err
	if x.request.TLS != nil {
		r.TLS = tls.VersionName(x.request.TLS.Version)
	}
	return r
}

func newRequestID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	return hex.EncodeToString(b[:])
}

var errNothingWritten = errors.New("the EST encoder wrote nothing")

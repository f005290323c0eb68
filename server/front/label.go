// Path -> label. "[an additional path segment] MUST NOT be the same as any of the defined operations" (RFC 7030 section
// 3.2.2). Only the exact bytes of a label's name are the label: nothing is unescaped, folded or cleaned.

package front

import (
	"context"
	"errors"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/server/registration"
)

const (
	defaultLabel  = "default" // the path without a label; not a path itself
	maxLabelBytes = 128
)

var errNoLabel = &Error{Kind: UnknownLabel, Detail: "no such label"}

// findLabel sets x.label.
func (f *Front) findLabel(ctx context.Context, x *exchange) error {
	name, err := labelName(x.request.URL.EscapedPath(), chi.RouteContext(ctx))
	if err != nil {
		return err
	}
	label, err := f.book.Label(ctx, name)
	var missing *registration.Error
	if errors.As(err, &missing) && (missing.Kind == registration.UnknownLabel || missing.Kind == registration.NotFound) {
		return errNoLabel
	}
	if err != nil {
		return err
	}
	x.label = label
	f.metrics.Label(label.Name, label.Profile)
	return nil
}

func labelName(path string, route *chi.Context) (string, error) {
	if strings.IndexByte(path, '%') >= 0 {
		return "", errNoLabel
	}
	name, present := "", false
	for i, key := range route.URLParams.Keys {
		if key == "label" {
			name, present = route.URLParams.Values[i], true
		}
	}
	switch {
	case !present:
		return defaultLabel, nil
	case name == "" || len(name) > maxLabelBytes || name == defaultLabel || wire.IsOperation(name):
		return "", errNoLabel
	}
	return name, nil
}

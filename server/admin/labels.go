// Labels: which CA, which profile and whose authentication a path of EST stands for.

package admin

import (
	"context"
	"fmt"
	"net/http"

	"github.com/natal-pki/natal/server/registration"
)

func (a *API) registerLabels() {
	handle(a, readers, http.MethodGet, "/labels", "List labels", func(ctx context.Context, _ Caller, _ *struct{}) (List[Label], error) {
		labels, err := a.cfg.Book.Labels(ctx)
		return list(labels, showLabel), err
	})
	handle(a, readers, http.MethodGet, "/labels/{name}", "Show a label", func(ctx context.Context, _ Caller, in *Named) (Label, error) {
		label, err := a.cfg.Book.Label(ctx, in.Name)
		return showLabel(label), err
	})
	handle(a, administrators, http.MethodPost, "/labels", "Add a label", func(ctx context.Context, c Caller, in *struct{ Body NewLabel }) (Label, error) {
		label, err := a.cfg.Book.AddLabel(ctx, c.Actor, registration.Label{Name: in.Body.Name, CA: in.Body.CA, Profile: in.Body.Profile, Auth: in.Body.Auth})
		return showLabel(label), err
	})
	handle(a, administrators, http.MethodPatch, "/labels/{name}", "Change a label", func(ctx context.Context, c Caller, in *struct {
		Named
		IfMatch string `header:"If-Match" doc:"ETag of the label as it was read: refused if it was changed since"`
		Body    LabelChange
	}) (Label, error) {
		label, err := a.cfg.Book.Label(ctx, in.Name)
		if err != nil {
			return Label{}, err
		}
		if in.IfMatch != "" && in.IfMatch != showLabel(label).etag() {
			return Label{}, newProblem(http.StatusPreconditionFailed, "label_changed", fmt.Sprintf("label %q is at version %d by now", label.Name, label.Version))
		}
		if in.Body.CA != "" {
			label.CA = in.Body.CA
		}
		if in.Body.Profile != "" {
			label.Profile = in.Body.Profile
		}
		if in.Body.Auth != nil {
			label.Auth = in.Body.Auth
		}
		label, err = a.cfg.Book.SetLabel(ctx, c.Actor, label)
		return showLabel(label), err
	})
	handleEmpty(a, administrators, http.MethodDelete, "/labels/{name}", "Remove a label", func(ctx context.Context, c Caller, in *Named) error {
		return a.cfg.Book.RemoveLabel(ctx, c.Actor, in.Name)
	})
}

func showLabel(l registration.Label) Label {
	return Label{Name: l.Name, CA: l.CA, Profile: l.Profile, Auth: l.Auth, Version: l.Version}
}

// GET /csrattrs (RFC 7030 section 4.5, RFC 9908): which keys the label's profile takes. Names, usages and validity are the
// server's decision, so nothing is said about them.

package front

import (
	"context"
	"encoding/asn1"
	"fmt"
	"strconv"
	"strings"

	"github.com/globalsign/est"

	"github.com/natal-pki/natal/internal/wire"
)

func (f *Front) csrAttrs(ctx context.Context, x *exchange) (answer, error) {
	return f.encode(ctx, x, wire.OpCSRAttrs, wire.TypeCSRAttrs, nil)
}

// wantedAttributes has one attribute for each key type of the profile, in the profile's order, which is the order of preference: the
// format has no word for "one of". An empty list is answered as an empty SEQUENCE, because some clients take 204 for an error.
func (f *Front) wantedAttributes(ctx context.Context, x *exchange) (est.CSRAttrs, error) {
	profile, err := f.ca.Profile(ctx, x.label.Profile)
	if err != nil {
		return est.CSRAttrs{}, err
	}
	var attrs est.CSRAttrs
	for _, spec := range profile.KeySpecs() {
		if spec == "ed25519" {
			attrs.OIDs = append(attrs.OIDs, oidEd25519)
			continue
		}
		attribute, err := keyAttribute(spec)
		if err != nil {
			return est.CSRAttrs{}, err
		}
		attrs.Attributes = append(attrs.Attributes, attribute)
	}
	return attrs, nil
}

// keyAttribute writes a key type of a profile ("ec:P-256", "rsa:2048") as RFC 9908 section 3.2 does: an EC key by its curve, an
// RSA key by its size. A key type without parameters is an OID and no attribute.
func keyAttribute(spec string) (est.Attribute, error) {
	kind, size, _ := strings.Cut(spec, ":")
	switch kind {
	case "ec":
		if curve := curves[size]; curve != nil {
			return est.Attribute{Type: wire.OIDECPublicKey, Values: est.AttributeValueSET{curve}}, nil
		}
	case "rsa":
		if bits, err := strconv.Atoi(size); err == nil {
			return est.Attribute{Type: wire.OIDRSAEncryption, Values: est.AttributeValueSET{bits}}, nil
		}
	}
	return est.Attribute{}, fmt.Errorf("profile has the key type %q, which CSR attributes cannot say", spec)
}

var curves = map[string]asn1.ObjectIdentifier{"P-256": wire.OIDCurveP256, "P-384": wire.OIDCurveP384, "P-521": wire.OIDCurveP521}

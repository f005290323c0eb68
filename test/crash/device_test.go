// Devices as simple as can be: a key, a code, one request, sent again with the same key until there is an answer.

package crash

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/natal-pki/natal/internal/wire"
	"github.com/natal-pki/natal/test/e2e/harness"
)

type device struct {
	id, code string
	key      crypto.Signer
	received []byte // DER; nil while there is no answer
}

// newDevices registers devices over DIR/admin.sock, with a code each.
func newDevices(t *testing.T, s *harness.Server, round, n int) []*device {
	t.Helper()
	admin := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.Data, "admin.sock"))
	}}}
	list := make([]*device, n)
	for i := range list {
		d := &device{id: fmt.Sprintf("dev-%d-%d", round, i), key: newKey(t)}
		answer, err := admin.Post("http://admin/api/v1/codes", "application/json", bytes.NewReader(fmt.Appendf(nil, `{"device":%q}`, d.id)))
		if err != nil {
			t.Fatal(err)
		}
		var made struct {
			Code string `json:"code"`
		}
		err = json.NewDecoder(answer.Body).Decode(&made)
		answer.Body.Close()
		if err != nil || made.Code == "" {
			t.Fatalf("code for %s: status %d, %v", d.id, answer.StatusCode, err)
		}
		d.code = made.Code
		list[i] = d
	}
	return list
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// enroll sends one request and returns the status and the certificate, if there is one; an error means that there was no whole answer.
func (d *device) enroll(client *http.Client, server string, key crypto.Signer) (status int, certificate []byte, err error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.id}}, key)
	if err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequest(http.MethodPost, server+wire.Path("", wire.OpSimpleEnroll), bytes.NewReader(wire.EncodeBase64(csr)))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", wire.TypePKCS10)
	request.SetBasicAuth(d.id, d.code)
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return answer.StatusCode, nil, err
	}
	der, err := wire.DecodeBase64(body)
	if err != nil {
		return answer.StatusCode, nil, err
	}
	certificates, err := wire.ParseCertsOnly(der)
	if err != nil || len(certificates) != 1 {
		return answer.StatusCode, nil, fmt.Errorf("%d certificates, %w", len(certificates), err)
	}
	return answer.StatusCode, certificates[0].Raw, nil
}

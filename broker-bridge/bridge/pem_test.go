// PEM of CRLs, for the files that a test writes by itself.

package bridge

import "encoding/pem"

func crlPEM(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }

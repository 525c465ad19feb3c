package wasman

import (
	"errors"
	"io"

	"wasman.dev/guest/v0/internal/abi"
)

var (
	errDownload = errors.New("wasman: the host refused to read the download: the session has no single source")
	errUpload   = errors.New("wasman: the host refused to write the upload: the session has no single sink, or it is closed")
)

// Download is the session's source: its only one, or the field download. The host fills the whole buffer of a Read
// unless the source ends, and knows the position: a guest that is restored reads on from there.
func Download() io.Reader { return download{} }

// Upload is the session's sink: its only one, or the field upload. Close ends it; it becomes visible as a whole, after
// the run has completed.
func Upload() io.WriteCloser { return upload{} }

// Neither keeps anything: the position is the host's, so memory restored from a checkpoint cannot contradict it.
type (
	download struct{}
	upload   struct{}
)

func (download) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // 0 of the host means the end
	}
	switch n := abi.StreamData(abi.Download, p); {
	case n < 0:
		return 0, errDownload
	case n == 0:
		return 0, io.EOF
	default:
		return int(n), nil
	}
}

func (upload) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) { // never with nothing: that closes
		n := abi.StreamData(abi.Upload, p[written:])
		if n <= 0 {
			return written, errUpload
		}
		written += int(n)
	}
	return written, nil
}

func (upload) Close() error {
	if abi.StreamData(abi.Upload, nil) < 0 {
		return errUpload
	}
	return nil
}

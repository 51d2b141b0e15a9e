"""Pictures that come with sound: decoding, faces, mouth crops."""

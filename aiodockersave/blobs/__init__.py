"""Turn any content that a caller passes into verified bytes of a blob; know no archives."""
